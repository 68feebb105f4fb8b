"""3D assets: read, tokenize, decode, compare and draw meshes and clouds of points."""

from shapes.extras import ShapesError
from shapes.files import detokenize, detokenize_file, tokenize, tokenize_file
from shapes.mesh import Mesh, read, write

__all__ = [
    "Mesh",
    "ShapesError",
    "detokenize",
    "detokenize_file",
    "read",
    "tokenize",
    "tokenize_file",
    "write",
]
