"""Every setting of the gateway: environment variables, and the same as flags of `serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIN_DIMENSIONS = 32
MAX_TEXTS = 2048


class Settings(BaseSettings):
    """The gateway's configuration, by the names of its variables: `Settings(EMBED_PORT=0)`.

    Constructing it reads the environment too, so only the command line does. Fields have no other
    alias than their variable's name, lest an unrelated `PORT` or `HOST` be taken for ours.
    """

    model_config = SettingsConfigDict(
        # A compose file hands on what is not set as an empty string.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    triton_url: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        validation_alias="TRITON_URL",
        description="Triton: http://host:8200 or grpc://host:8201, comma-separated for several.",
    )
    triton_model: str = Field(
        default="qwen3_embed_onnx",
        validation_alias="TRITON_MODEL",
        description="Name of the model in Triton's repository.",
    )
    tokenizer_path: Path | None = Field(
        default=None,
        validation_alias="TOKENIZER_PATH",
        description="Folder or file of the model's tokenizer.json.",
    )
    model_id: str | None = Field(
        default=None,
        validation_alias="EMBED_MODEL_ID",
        description="Model name in answers; by default told from the model's hidden size.",
    )
    model_aliases: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        validation_alias="EMBED_MODEL_ALIASES",
        description="Other names a request may call the model by, comma-separated.",
    )
    model_dir: Path | None = Field(
        default=None,
        validation_alias="EMBED_MODEL_DIR",
        description="Run ONNX Runtime in the gateway on this folder (model.onnx, tokenizer.json).",
    )
    max_length: int = Field(
        default=1024,
        ge=2,
        validation_alias="EMBED_MAX_LENGTH",
        description="Tokens of a text that the model sees, the end token included.",
    )
    output_dim: int = Field(
        default=1024,
        ge=MIN_DIMENSIONS,
        validation_alias="EMBED_OUTPUT_DIM",
        description="Dimensions of a vector unless the request says otherwise.",
    )
    timeout_seconds: float = Field(
        default=120.0,
        gt=0,
        validation_alias="EMBED_TIMEOUT_S",
        description="Deadline of a request in seconds.",
    )
    max_batch_tokens: int = Field(
        default=8192,
        ge=1,
        validation_alias="EMBED_MAX_BATCH_TOKENS",
        description="Most padded tokens in one batch; fewer where those take the model over 0.1 s.",
    )
    max_queue_tokens: int = Field(
        default=4_194_304,
        ge=1,
        validation_alias="EMBED_MAX_QUEUE_TOKENS",
        description="Tokens waiting for the model; a request beyond that gets 429.",
    )
    max_queue_requests: int = Field(
        default=1024,
        ge=1,
        validation_alias="EMBED_MAX_QUEUE_REQUESTS",
        description="Embedding requests under way at once; one more gets 429.",
    )
    cache_bytes: int = Field(
        default=0,
        ge=0,
        validation_alias="EMBED_CACHE_BYTES",
        description="Memory for vectors of texts seen before; 0 keeps none.",
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1024,
        validation_alias="EMBED_MAX_BODY_BYTES",
        description="Largest request body in bytes; beyond it 413.",
    )
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list[SecretStr],
        validation_alias="EMBED_API_KEYS",
        description="Keys that callers must show as 'Authorization: Bearer KEY', comma-separated.",
    )
    api_keys_file: Path | None = Field(
        default=None,
        validation_alias="EMBED_API_KEYS_FILE",
        description="File with more such keys, one a line; lines that begin with # are skipped.",
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        validation_alias="EMBED_CORS_ORIGINS",
        description="Origins of web pages that may call the gateway, comma-separated; * for all.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        validation_alias="EMBED_TLS_CERTIFICATE",
        description="Certificate chain in PEM; with it and its key the gateway speaks HTTPS.",
    )
    tls_key: Path | None = Field(
        default=None,
        validation_alias="EMBED_TLS_KEY",
        description="Private key of the certificate, in PEM.",
    )
    host: str = Field(
        default="127.0.0.1", validation_alias="EMBED_HOST", description="Address to bind."
    )
    port: int = Field(
        default=8101,
        ge=0,
        le=65535,
        validation_alias="EMBED_PORT",
        description="Port to bind; 0 takes a free one and prints it.",
    )
    shutdown_delay_seconds: float = Field(
        default=1.0,
        ge=0,
        validation_alias="EMBED_SHUTDOWN_DELAY_S",
        description="Seconds after SIGTERM in which requests are still taken, no longer ready.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="OTLP collector for traces, http://host:4318; other OTEL_ variables hold too.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        validation_alias="EMBED_LOG_FORMAT",
        description="Log lines as text or as JSON objects.",
    )

    @field_validator("triton_url", "model_aliases", "api_keys", "cors_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("api_keys_file", "tls_certificate", "tls_key")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is not None and not os.access(path, os.R_OK):
            msg = f"cannot read the file {path}"
            raise ValueError(msg)
        return path

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            msg = "EMBED_TLS_CERTIFICATE and EMBED_TLS_KEY belong together: set both or neither."
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _one_backend(self) -> Settings:
        if self.triton_url and self.model_dir:
            msg = "TRITON_URL and EMBED_MODEL_DIR are both set: choose one of them."
            raise ValueError(msg)
        return self

    def all_api_keys(self) -> list[str]:
        """Give the keys of `EMBED_API_KEYS` and of the file; empty means that none is asked for.

        Raises:
            ValueError: the file holds no key, which would leave the gateway open by accident.
        """
        keys = [key.get_secret_value() for key in self.api_keys]
        if self.api_keys_file is not None:
            lines = [line.strip() for line in self.api_keys_file.read_text().splitlines()]
            listed = [line for line in lines if line and not line.startswith("#")]
            if not listed:
                msg = f"{self.api_keys_file} holds no key; remove EMBED_API_KEYS_FILE or add one."
                raise ValueError(msg)
            keys += listed
        return keys
