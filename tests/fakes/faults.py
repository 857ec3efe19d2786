"""Lets things fail, once."""


def fail_once(pipeline, error, when):
    """Lets the first pass for which `when` is true fail in the middle of the layers."""
    seen = {}

    def note(module, args, kwargs):
        seen["shape"] = tuple(kwargs["input_ids"].shape)

    def fail(module, args):
        if when(seen["shape"]):
            hook.remove()
            raise error

    pipeline.model.register_forward_pre_hook(note, with_kwargs=True)
    hook = pipeline.model.model.layers[-1].register_forward_pre_hook(fail)


def once_failing(monkeypatch, owner, name, error):
    """Lets a method fail at its first call."""
    original, calls = getattr(owner, name), []

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, fail)
    return calls
