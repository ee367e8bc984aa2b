"""One training, its hypotheses of the test split under every token, and what it took; in a process that can be killed."""

import time
from pathlib import Path
from typing import Any

from analysis.error_rates import count_errors
from benchmarks.domain_tokens.corpora import FOLDER, Corpus, corpus_of
from benchmarks.domain_tokens.rows import ROWS, RowOptions
from moe.audio.augmentation import AugmentationOptions
from moe.files import write_json, write_whole_dir
from moe.recognition.decoding import decode
from moe.system import Ask, DecodingOptions
from moe.systems.domain_whisper.asks import AUTO, CORPUS, NONE, DomainAsk, WrongDomain
from moe.systems.domain_whisper.domains import DomainOptions, domains_of
from moe.systems.domain_whisper.folder import DomainShape
from moe.systems.domain_whisper.options import BalanceOptions, DomainTrainingOptions, LossOptions, TokenOptions
from moe.systems.domain_whisper.system import DomainSystem, build
from moe.systems.domain_whisper.training import balanced, train
from moe.systems.domain_whisper.unfreezing import UnfreezeOptions, usual_learning_rate
from moe.systems.whisper.base_model import load_base, read_training_record
from moe.systems.whisper.features import AudioContextOptions
from moe.text.normalisers import normalise
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training, seed_everything
from moe.training.plan import TrainingPlan
from steps.pretrain import SHIPPED

NO_TOKEN = "none"
ASKS: dict[str, Ask] = {
    "right": DomainAsk(domain=CORPUS), "wrong": WrongDomain(), NO_TOKEN: DomainAsk(domain=NONE), "auto": DomainAsk(domain=AUTO),
}  # fmt: skip


def measure(corpus: str, row: str, seed: int, beam_size: int) -> None:
    """Train a row and keep its hypotheses under every token."""
    name = row if beam_size == 1 else f"{row}, {beam_size} beams"
    folder = FOLDER / f"{corpus}_{name.replace(' ', '_').replace('/', '_').replace(',', '')}_{seed}"
    if (folder / "facts.json").exists():
        return
    options, data = RowOptions(**ROWS[corpus][row]), corpus_of(corpus)
    started = time.process_time()
    system, facts = _trained(options, data, seed)
    facts["training_seconds"] = time.process_time() - started
    with write_whole_dir(folder) as aside:
        test = data.part("test")
        dataset = SpeechDataset(test, data.root, system.inputs, extras=system.from_manifest(test))
        asks = ASKS if options.trains and system.shape.conditioned else {NO_TOKEN: ASKS[NO_TOKEN]}
        for asked, ask in asks.items():
            found = decode(system, dataset, DecodingOptions(beam_size=beam_size), ask, title=f"{name}, {asked}")
            texts = [normalise(system.record.normaliser, each.text) for each in found]
            table = test[["utterance_id", "speaker", "etiology", "reference"]].assign(
                hypothesis=texts, domain=[each.details["domain"] for each in found]
            )
            count_errors(table).to_parquet(aside / f"{asked}.parquet")
        write_json(aside / "facts.json", {"corpus": corpus, "row": name, "seed": seed, **facts})


def _trained(options: RowOptions, data: Corpus, seed: int) -> tuple[DomainSystem, dict[str, Any]]:
    """The system of a row, and what its training took."""
    seed_everything(seed)
    rows, dev = data.part("train"), data.part("dev")
    domains, base = domains_of(options.part(DomainOptions), rows["etiology"]), load_base(SHIPPED, options.dropout)
    shape = DomainShape(
        domains, options.token_place, options.domain_confidence, options.part(UnfreezeOptions), AudioContextOptions()
    )
    rate = options.domain_learning_rate or usual_learning_rate(options.unfreeze, read_training_record(Path(SHIPPED)))
    rates = (rate, options.token_learning_rate)
    system = build(base, Path(SHIPPED), shape, "en", "basic", options.part(TokenOptions), options.part(LossOptions), rates)
    if not options.trains:
        return system, {"n_trainable": 0, "epoch": None, "classifier": None, "history": []}
    again = balanced(domains.numbers(rows["etiology"].tolist()), domains.is_target, options.part(BalanceOptions), seed)
    repeated = rows.iloc[again].reset_index(drop=True)
    plain = AugmentationOptions(n_masks=0, gain=0.0)
    trained = train(
        system,
        SpeechDataset(repeated, data.root, system.inputs, plain, seed, system.from_manifest(repeated), trains=True),
        SpeechDataset(dev, data.root, system.inputs, extras=system.from_manifest(dev)),
        SpeechDataset(rows, data.root, system.inputs),
        options.part(DomainTrainingOptions),
        Training(TrainingPlan(options.domain_epochs, options.domain_batch_size, rate, seed), _printed),
    )
    groups = {group.name: group.n_parameters for group in system.parameter_groups()}
    accuracy = trained.classifier.result.metrics["dev/accuracy"] if trained.classifier else None
    return system, {
        "n_trainable": sum(groups.values()),
        "epoch": trained.epoch,
        "classifier": accuracy,
        "history": trained.history,
    }


def _printed(number: int, values: dict[str, float]) -> None:
    if any(name.startswith("dev/") for name in values):
        print(number, {name: round(value, 4) for name, value in values.items() if name.count("/") == 1}, flush=True)
