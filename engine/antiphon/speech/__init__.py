"""The speech side: streaming detokenizer with its chunking, look-ahead and overlap."""

from .detokenizer import SpeechWork, StreamingDetokenizer
from .flow_solver import ode_schedule
from .options import SpeechOptions
from .receptive_field import ReceptiveField
from .stream import SpeechStream

__all__ = ["ReceptiveField", "SpeechOptions", "SpeechStream", "SpeechWork", "StreamingDetokenizer", "ode_schedule"]
