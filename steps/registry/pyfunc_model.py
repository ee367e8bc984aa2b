"""The registered model, as code: audio bytes in; text, confidence, whether nobody speaks, what was the speaker's own and more out.

MLflow runs this file when the model is loaded, from the model's own folder: it imports `moe`, which lies beside it, and nothing else of
the project. The artifact `model` is the folder that a training step logged; the model's config holds decoding policy and bounds
(`moe.serving.requests.ServiceOptions`) and what is asked of the system, and SERVING_MODEL_CONFIG changes them for one server.
"""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR, RESOURCE_CONFLICT
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from moe.experts.people.training import PersonalSystem
from moe.files import folder_digest
from moe.recognition.recognizer import Recognizer
from moe.serving import request_guard
from moe.serving.people import INFIX, PROFILE_TAG, ServedPeople, keep_current, registered_person
from moe.serving.requests import AUDIO, SPEAKER, Conflict, RequestError, ServiceOptions, check_params, nothing_asked
from moe.serving.service import Service, settings
from moe.serving.voices import ServedVoices
from moe.system import System
from moe.systems.table import load_system
from moe.training.precision import PrecisionOptions

LOG = logging.getLogger(__name__)


class Refusal(MlflowException):
    """An answer to the client, as it stands: the scoring server would put a printout of the whole input before it."""

    @property
    def message(self) -> str:
        """One sentence."""
        return str(self.args[0])

    @message.setter
    def message(self, text: str) -> None:
        """Stays what it was."""


class RecognizerModel(PythonModel):
    """A recogniser behind MLflow's interface; calls from many threads share their passes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the recogniser once; in a scoring server, put the guard at its door."""
        system = load_system(context.artifacts["model"])
        options, usual = settings(context.model_config or {}, system.ask_type)
        people = _people(system, Path(context.artifacts["model"]), options)
        voices = _voices(people, options)
        recognizer = Recognizer.on_fastest_device(system, options.speech_threshold, options.part(PrecisionOptions))
        self.service = Service(recognizer, options, usual, people, voices)
        self.nothing = {"beam_size": 0, SPEAKER: ""} | {field.name: nothing_asked(field) for field in dataclasses.fields(usual)}
        if request_guard.in_server():
            request_guard.install(self.service)
            keep_current(options.people_refresh_s, *(each.refresh for each in (people, voices) if each is not None))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """One row per row of `audio`: encoded bytes, or base64 text of them; from Python also a `Path`, or samples (n_samples,) at 16 kHz.

        Raises:
            Refusal: what is wrong with the request (400), or that the recogniser failed (500).
        """
        try:
            return self._rows(model_input, params or {})
        except RequestError as error:
            raise Refusal(str(error), RESOURCE_CONFLICT if isinstance(error, Conflict) else BAD_REQUEST) from error
        except Exception as error:
            LOG.exception("a request failed")
            raise Refusal(request_guard.FAILED, INTERNAL_ERROR) from error

    def _rows(self, model_input: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        given = {name: value for name, value in params.items() if self.nothing.get(name, ...) != value}
        asked = check_params(given, self.service.options, self.service.usual)
        if AUDIO not in model_input:
            raise RequestError(f"there is no column {AUDIO}")
        answers = self.service.answer(list(model_input[AUDIO]), asked)
        return pd.DataFrame([answer.as_row(asked.return_routing) for answer in answers])


def _people(system: System, folder: Path, options: ServiceOptions) -> ServedPeople | None:
    """The people of the registered recogniser that this is a version of; None where it serves nobody's."""
    if options.people_of is None or not isinstance(system, PersonalSystem):
        return None
    client, recogniser = MlflowClient(), options.people_of
    brought = functools.cache(
        mlflow.artifacts.download_artifacts
    )  # else a person would be another one at every look into a remote store

    def find(name: str) -> Path | None:
        wanted = f"name = '{registered_person(recogniser, name)}'"
        try:
            found = client.search_model_versions(wanted, max_results=1, order_by=["version_number DESC"])
        except MlflowException:
            return None
        return Path(brought(found[0].source)) if found else None

    return ServedPeople(system, folder_digest(folder), find, options.max_people, options.people_refresh_s)


def _voices(people: ServedPeople | None, options: ServiceOptions) -> ServedVoices | None:
    """The profiles of the people who are served, where they are to be recognised by their voice."""
    if people is None or not options.speaker_auto:
        return None
    prefix = f"{options.people_of}{INFIX}"
    wanted = f"name LIKE '{prefix}%' and tags.`{PROFILE_TAG}` = 'true'"

    def names() -> list[str]:
        found = mlflow.search_registered_models(filter_string=wanted)
        return [model.name.removeprefix(prefix) for model in found if model.name.startswith(prefix)]

    return ServedVoices(people, names, options.speaker_confidence)


mlflow.models.set_model(RecognizerModel())
