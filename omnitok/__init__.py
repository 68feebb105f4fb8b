"""Any image, any video of any length and any 3D asset into tokens, and back."""

from omnitok.hub import load
from omnitok.stream import EncodeStream
from omnitok.tokenizer import Tokenizer
from omnitok.tokens import Tokens, TokensError
from omnitok.version import VERSION

__version__ = VERSION

__all__ = ["EncodeStream", "Tokenizer", "Tokens", "TokensError", "__version__", "load"]
