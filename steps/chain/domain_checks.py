"""What `main` refuses of a domain-token Whisper before anything has run: blocks and tokens of its base, and the domains of its corpus."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from transformers import WhisperConfig, WhisperTokenizer

from moe.options import listed
from moe.systems.domain_whisper.domains import DomainOptions, domains_of
from moe.systems.domain_whisper.prompts import token_faults
from moe.systems.domain_whisper.unfreezing import UnfreezeOptions
from moe.systems.whisper.base_source import SCRATCH, SmallShape, has_processor, small_files
from steps.chain.options import DOMAIN
from steps.chain.stages import makes_tokenizer
from steps.options.step_options import SYNTHETIC


def domain_faults(options: Any, etiologies: Sequence[str] | None) -> list[str]:
    """What does not go together; of what is not on this machine it shows when that is loaded.

    Args:
        options: `steps.main.StepOptions`, whose fields are those of all stages.
        etiologies: of the train split's utterances, (n,); None where they are not known yet.
    """
    if DOMAIN not in options.system_names:
        return []
    try:
        asked = options.part(DomainOptions)
        found = _base_faults(options, asked.named)
    except (OSError, ValueError, TypeError):
        return []  # said of the stage itself, or of a base that is none
    if options.corpus == SYNTHETIC:
        etiologies = listed(options.styles)
    try:
        if etiologies is not None:
            domains_of(asked, pd.Series(etiologies, dtype=str))
    except ValueError as error:
        found.append(str(error))
    return found


def _base_faults(options: Any, names: Sequence[str]) -> list[str]:
    """Fewer blocks than are to train, and tokens of these domains that the base has already."""
    if options.source == SCRATCH:
        new = SmallShape()
        shape = WhisperConfig(encoder_layers=new.encoder_layers, decoder_layers=new.decoder_layers)
        return options.part(UnfreezeOptions).block_faults(shape)
    folder = small_files(options.source)
    if folder is None:
        return []
    found = options.part(UnfreezeOptions).block_faults(WhisperConfig.from_pretrained(folder))
    if has_processor(folder) and not makes_tokenizer(options):
        found += token_faults(WhisperTokenizer.from_pretrained(folder), names)
    return found
