"""Tell what a file is that is no PyTorch or safetensors checkpoint, from its first bytes."""

import codecs

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves; run `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file (Keras weights), which this does not read"),
    (b"\x93NUMPY", "a numpy array; save a state dict with torch.save"),
    (b"GGUF", "a GGUF file, which this does not read"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x89PNG", "a PNG image; pass images with --images"),
    (b"\xff\xd8\xff", "a JPEG image; pass images with --images"),
    (b"\x08\x07", "an ONNX model; load the PyTorch weights that it was made from"),
    (b"\x08\x08", "an ONNX model; load the PyTorch weights that it was made from"),
    (b"%PDF", "a PDF"),
)
_PROTOCOL = 0x80  # a pickle of protocol 2 or later, as torch writes, begins with this byte


def foreign_format(start: bytes) -> str | None:
    """Name the format that `start`, the first bytes of a file, belongs to; None where it may be a checkpoint."""
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if start[:1] == bytes([_PROTOCOL]):
        return None
    if b"\0" in start:
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start).lstrip().lower()  # the last letter may be cut
    except UnicodeDecodeError:
        return None
    if text.startswith(("<!doctype", "<html")):
        return "a web page; the download went wrong, fetch the file itself"
    return "a text file"
