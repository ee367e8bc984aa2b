"""The registered model, as code: audio bytes in, text and expert weights out. MLflow runs this file when the model is loaded."""

import base64
import binascii

import mlflow
import pandas as pd

from moe.audio import load_audio
from moe.decoding import DecodingOptions
from moe.recognizer import WhisperRecognizer


class MixtureModel(mlflow.pyfunc.PythonModel):
    """A recogniser behind MLflow's interface; the artifact `model` is the folder that `asr` logged."""

    def load_context(self, context: mlflow.pyfunc.PythonModelContext) -> None:
        """Read the recogniser once."""
        self.recognizer = WhisperRecognizer.load(context.artifacts["model"])

    def predict(self, context: mlflow.pyfunc.PythonModelContext, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        """Text and expert weights of each row's `audio` (encoded bytes, base64 over HTTP).

        Raises:
            ValueError: a row whose audio cannot be decoded.
        """
        params = params or {}
        waveforms = [load_audio(as_bytes(audio)) for audio in model_input["audio"]]
        options = DecodingOptions(beam_size=int(params.get("beam_size", 1)))
        top_k = int(params.get("top_k", 0)) or None
        transcripts = self.recognizer.transcribe(waveforms, options, top_k)
        return pd.DataFrame(
            {
                "text": [transcript.text for transcript in transcripts],
                "expert_weights": [list(transcript.routing_weights) for transcript in transcripts],
            }
        )


def as_bytes(audio: bytes | str) -> bytes:
    """Encoded audio as bytes.

    Raises:
        ValueError: text that is not base64, or neither text nor bytes.
    """
    if isinstance(audio, (bytes, bytearray)):
        return bytes(audio)
    if not isinstance(audio, str):
        raise ValueError(f"audio is {type(audio).__name__}: must be bytes or base64 text")
    try:
        return base64.b64decode(audio, validate=True)
    except binascii.Error as error:
        raise ValueError("audio is no base64 text") from error


mlflow.models.set_model(MixtureModel())
