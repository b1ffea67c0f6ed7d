"""What can go wrong with an ONNX file."""


class OnnxFileError(Exception):
    """The file is missing, broken, no ONNX model, or cannot be written; the message says which."""
