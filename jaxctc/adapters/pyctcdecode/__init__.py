"""The decoder of pyctcdecode: `pyctcdecode.build_ctcdecoder`, from NumPy's logits to text.

Modules and names are pyctcdecode's, including those that transformers uses.
"""

import warnings
from collections.abc import Collection

from jaxctc.adapters.pyctcdecode import constants
from jaxctc.adapters.pyctcdecode.alphabet import Alphabet, require_space
from jaxctc.adapters.pyctcdecode.decoder import BeamSearchDecoderCTC
from jaxctc.adapters.pyctcdecode.language_model import LanguageModel
from jaxctc.decoding.memory import MAX_BYTES

__all__ = ["Alphabet", "BeamSearchDecoderCTC", "LanguageModel", "build_ctcdecoder"]


def build_ctcdecoder(
    labels: list[str],
    kenlm_model_path: str | None = None,
    unigrams: Collection[str] | None = None,
    alpha: float = constants.DEFAULT_ALPHA,
    beta: float = constants.DEFAULT_BETA,
    unk_score_offset: float = constants.DEFAULT_UNK_LOGP_OFFSET,
    lm_score_boundary: bool = constants.DEFAULT_SCORE_LM_BOUNDARY,
    max_bytes: int = MAX_BYTES,
) -> BeamSearchDecoderCTC:
    """A decoder from logits to text, by `jaxctc.beam_step`, with pyctcdecode's arguments.

    Args:
      labels: names of the classes. As in pyctcdecode, names that begin with "▁" or "##" make them
        word pieces; "<pad>" or "[PAD]", else "" or "_", is the blank, and without any it is one
        class more, the last; "|" is the space if " " is not there; "<unk>" is written as "⁇".
      kenlm_model_path: an n-gram model of words as an ARPA file, gzipped or not, whatever its
        name. KenLM's binary format is refused: KenLM itself makes no ARPA file of it.
      unigrams: the words that are known. Those that are not in the model are left out; None is
        the words of the model. Without a model they have no effect, as in pyctcdecode, and a
        warning says so.
      alpha: weight of the model.
      beta: nats for every word, if there is a model.
      unk_score_offset: what the model adds for a word that is not known, to base 10; `alpha`
        applies to it.
      lm_score_boundary: whether the model scores the beginning and the end of the text.
      max_bytes: as of `jaxctc.read_arpa`; pyctcdecode has no limit.

    Returns:
      `BeamSearchDecoderCTC`.

    Raises:
      ValueError: if labels are not different strings, or several are the blank; if the file is
        no ARPA file, no label of it spells a word, or there is a model and no label for the space
        between words.
      OSError: if the file cannot be opened.

    Example:
      >>> import numpy as np
      >>> decoder = build_ctcdecoder(["", " ", "a", "b"])
      >>> path = np.array([2, 2, 0, 2, 1, 3])
      >>> decoder.decode(9.0 * np.eye(4)[path])
      'aa b'
      >>> [beam[2] for beam in decoder.decode_beams(9.0 * np.eye(4)[path], beam_width=2)][0]
      [('aa', (0, 4)), ('b', (5, 6))]
    """
    alphabet = Alphabet.build_alphabet(labels)
    if kenlm_model_path is None:
        if unigrams is not None:
            message = "unigrams have no effect without kenlm_model_path, as in pyctcdecode"
            warnings.warn(f"adapters.pyctcdecode: {message}.", UserWarning, stacklevel=2)
        return BeamSearchDecoderCTC(alphabet)
    require_space(alphabet)  # before a long file is read
    options = unigrams, alpha, beta, unk_score_offset, lm_score_boundary, max_bytes
    return BeamSearchDecoderCTC(alphabet, LanguageModel(kenlm_model_path, *options))
