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


def once_failing(monkeypatch, owner, name, error, skipped=0):
    """Lets a method fail once, at its first call or after some have succeeded."""
    original, calls = getattr(owner, name), []
    bound = isinstance(owner.__dict__[name], classmethod)

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == skipped + 1:
            raise error
        return original(*args, **kwargs) if bound else original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, classmethod(fail) if bound else fail)
    return calls
