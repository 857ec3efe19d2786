from pathlib import Path

import pytest

from langchain_llama_stop.loading import load_pipeline


@pytest.mark.parametrize(
    "name", ["./none", "../none", "~/no-such-folder", "/none", "a/b/c", "none.gguf", Path("none")]
)
def test_what_looks_like_a_path_has_to_exist(name):
    with pytest.raises(FileNotFoundError, match="`model` is '.*does not exist. Check the path"):
        load_pipeline(name)


def test_an_incomplete_folder_is_named(tiny, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json. Give the folder"):
        load_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError, match="It is an adapter: give it as `adapter`"):
        load_pipeline(adapter)
    with pytest.raises(ValueError, match="has to be a folder or a `.gguf` file"):
        load_pipeline(tiny / "config.json")
