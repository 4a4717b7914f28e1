"""What to call a checkpoint after the file it came from."""

from pathlib import PurePath

_ENDINGS = (".tar", ".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".gz")
_GENERAL = frozenset({"best", "checkpoint", "checkpoint_best", "last", "model", "model_best", "pytorch_model", "weights"})


def source_name(source: str | PurePath) -> str:
    """A file's name without its endings; where that says nothing (`model.safetensors`), the name of its folder.

    >>> source_name("runs/tap/model.safetensors"), source_name("deit.pth.tar"), source_name("vit_tiny_patch16_224.augreg_in21k")
    ('tap', 'deit', 'vit_tiny_patch16_224.augreg_in21k')
    """
    path = PurePath(source)
    name = path.name
    while name.endswith(_ENDINGS):
        name = name.rpartition(".")[0]
    return path.parent.name or name if name in _GENERAL else name
