"""What a model is: `ModelConfig` and its presets."""

from dataclasses import asdict, dataclass, fields

from cllm.checks import checked_flag, checked_real, checked_size, checked_word, keep
from cllm.errors import ConfigError

CHOICES = {
    "qkv": ("full", "lattice"),
    "positions": ("learned", "sinusoidal", "spiral", "clock", "prime", "none"),
    "activation": ("gelu", "relu", "tanh"),
    "attention": ("softmax", "crystalline"),
    "loss": ("cross_entropy", "mse"),
}

CRYSTALLINE = ("rotation", "distance", "bias")  # the parts of crystalline attention

PRESETS = {
    "tiny": (256, 2, 64, 4, 256, 256),
    "small": (256, 6, 512, 8, 2048, 1024),
    "gpt2": (50257, 12, 768, 12, 3072, 1024),
}

LARGEST_SEED = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and kind of a transformer language model.

    Parameters
    ----------
    vocab_size, n_layers, d_model, n_heads, d_ff, max_seq_len : int
        V, number of blocks, C, H, F, and the longest T the model takes; each at least 1, C a multiple of H.
    qkv : {"full", "lattice"}
        One C x 3C product, or H block-diagonal D x D products for each of q, k and v.
    qkv_bias, out_proj, tied : bool
        A bias on q, k, v; a projection after attention; the head shares the token embedding.
    positions, activation, attention, loss : str
        See ``CHOICES`` for what each may be.
    dropout : float
        Probability of dropping, in [0, 1).
    norm_eps : float
        Added to the variance inside the root.
    crystalline : tuple of str
        Parts of crystalline attention that are on, among ``CRYSTALLINE``; kept in that order. Only counts with
        ``attention="crystalline"``.

    Raises
    ------
    ConfigError
        When a value is outside what it may be.
    """

    vocab_size: int
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    max_seq_len: int
    qkv: str = "full"
    qkv_bias: bool = True
    out_proj: bool = True
    positions: str = "learned"
    activation: str = "gelu"
    tied: bool = True
    attention: str = "softmax"
    dropout: float = 0.0
    norm_eps: float = 1e-5
    loss: str = "cross_entropy"
    crystalline: tuple[str, ...] = CRYSTALLINE

    def __post_init__(self):
        for name in ("vocab_size", "n_layers", "d_model", "n_heads", "d_ff", "max_seq_len"):
            keep(self, "ModelConfig", name, checked_size)
        if self.d_model % self.n_heads:
            raise ConfigError("ModelConfig(n_heads=...)", f"must divide d_model = {self.d_model}", str(self.n_heads),
                              "Choose d_model as a multiple of n_heads.")
        for name, allowed in CHOICES.items():
            keep(self, "ModelConfig", name, checked_word, allowed)
        for name in ("qkv_bias", "out_proj", "tied"):
            keep(self, "ModelConfig", name, checked_flag)
        object.__setattr__(self, "crystalline", _checked_parts(self.crystalline))
        if self.attention == "crystalline" and "rotation" in self.crystalline and self.d_model // self.n_heads % 2:
            raise ConfigError("ModelConfig(crystalline=...)", "rotation needs an even number of channels in a head",
                              str(self.d_model // self.n_heads), "Choose other sizes, or leave the rotation out.")
        keep(self, "ModelConfig", "dropout", checked_real, 0.0, 1.0)
        keep(self, "ModelConfig", "norm_eps", checked_real, 0.0, 1.0, "()")

    @classmethod
    def preset(cls, name: str, **changes) -> "ModelConfig":
        """The preset of that name, with single settings changed by keyword.

        Raises
        ------
        ConfigError
            When there is no such preset or setting.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError("ModelConfig.preset(name)", f"must be one of {', '.join(PRESETS)}", repr(name),
                              "Choose one of these, or give the sizes to ModelConfig.")
        names = [field.name for field in fields(cls)]
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise ConfigError("ModelConfig.preset(...)", f"settings must be among {', '.join(names)}",
                              ", ".join(unknown), "Check the spelling.")
        return cls(**{**dict(zip(names, PRESETS[name], strict=False)), **changes})

    def to_dict(self) -> dict:
        """Every setting by name; ``ModelConfig(**d)`` makes it again."""
        return asdict(self)

    @property
    def letters(self) -> dict[str, int]:
        """The shape letters that the model decides: C, H, D, F, V and P."""
        return {"C": self.d_model, "H": self.n_heads, "D": self.d_model // self.n_heads, "F": self.d_ff,
                "V": self.vocab_size, "P": self.max_seq_len}


def _checked_parts(value) -> tuple[str, ...]:
    parts = value if isinstance(value, (tuple, list)) else (None,)
    if any(not isinstance(part, str) or part not in CRYSTALLINE for part in parts):
        raise ConfigError("ModelConfig(crystalline=...)", f"must be a tuple of parts among {', '.join(CRYSTALLINE)}",
                          repr(value), "Choose from these, or none of them.")
    return tuple(part for part in CRYSTALLINE if part in parts)
