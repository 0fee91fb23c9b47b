"""Models small enough for every test: two blocks, width 64, byte-level tokenizer, no download."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from compress import library

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the hub is a mistake
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A test may have a cache of its own; compiling takes twenty seconds, in each of its processes too.
os.environ.setdefault("NUMBA_CACHE_DIR", str(library.cache_folder() / "kernels"))

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
WIDTH, HIDDEN, BLOCKS, HEADS, VOCAB, POSITIONS = 64, 128, 2, 4, 320, 256
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_GATED = {
    "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": WIDTH // HEADS,
    "max_position_embeddings": POSITIONS,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _GATED),
    **{name: {**_GATED, "sliding_window": 32} for name in ("gemma2", "gemma3_text")},
    "gpt2": {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": POSITIONS},
    "opt": {
        "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": HIDDEN,
        "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
    },
    "gpt_neox": {
        "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS, "max_position_embeddings": POSITIONS,
    },
}  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Half a million objects come with what tests import and stay: none is searched for garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def imported_by(program: str, *arguments: object) -> set[str]:
    """Run a program in an interpreter of its own; every module that it has imported by its end."""
    code = f"{program}\nimport sys; print(*sys.modules)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device there is; CUDA runs under `-m gpu`."""
    if request.param == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture(autouse=True)
def no_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into a pipe is as wide as it needs; processes of a test run set COLUMNS."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def products_as_before() -> Iterator[None]:
    """A run chooses who multiplies float32 for its whole process; the next test chooses anew."""
    yield
    if torch := sys.modules.get("torch"):
        torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of benchmarks/ the way its scripts see each other."""
    folders = [BENCHMARKS, BENCHMARKS / "readers", BENCHMARKS / "peers"]
    names = {path.stem for folder in folders for path in folder.glob("*.py")}
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a tiny model folder, once per set of arguments: `tiny_model("qwen2", tied=True)`."""
    made: dict[str, Path] = {}

    def make(family: str = "llama", *, tied: bool = False, **overrides: Any) -> Path:
        key = repr((family, tied, sorted(overrides.items())))  # a value may be a dict
        if key not in made:
            made[key] = tmp_path_factory.mktemp(f"tiny_{family}")
            _save(made[key], family, tie_word_embeddings=tied, **overrides)
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[..., Path]) -> Path:
    """A Llama with a head of its own."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tiny_tied(tiny_model: Callable[..., Path]) -> Path:
    """A Llama whose head is its embedding."""
    return tiny_model("llama", tied=True)


@pytest.fixture
def transformers_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's end asks transformers here, where it is imported: four seconds less than a child.

    The script and what it is asked stay the same; tests/verify asks it in a process of its own.
    """
    from compress.verify import consumers, in_transformers

    in_a_child = consumers.run_child

    def run(python: str, script: Path, request: Any, **options: Any) -> Any:
        if Path(in_transformers.__file__) != script:
            return in_a_child(python, script, request, **options)
        asked, answer = tmp_path / "asked.json", tmp_path / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        in_transformers.main(asked, answer)
        return json.loads(answer.read_text(encoding="utf-8"))

    monkeypatch.setattr(consumers, "run_child", run)


@pytest.fixture
def recipe(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., Path],
    transformers_at_hand: None,
) -> Callable[..., Any]:
    """`recipe(stages, *sets, **sizes)` of a tied Llama; it reads and is judged on text.txt."""
    from compress.recipe.load import load

    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    text, suite, path = (tmp_path / name for name in ("text.txt", "suite.yaml", "mine.yaml"))
    text.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60)
    windows = "{set: ./text.txt, seq_len: 32, windows: 4}"
    suite.write_text(f"version: 1\nperplexity: {windows}\ndivergence: {windows}\n")

    def make(stages: str, *sets: str, **sizes: Any) -> Any:
        path.write_text(
            "version: 1\n"
            f"teacher: {{model: {tiny_model('llama', tied=True, **sizes)}, dtype: float32}}\n"
            f"calibration: {{set: {text}, samples: 8, seq_len: 32}}\n"
            f"stages: {stages}\n"
            f"evaluate: {{suite: {suite}}}\n"
        )
        return load(str(path), sets)

    return make


def _save(folder: Path, family: str, **overrides: Any) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": VOCAB, "bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256,
        "initializer_range": 0.2,  # far enough from zero for logits with an opinion
    }  # fmt: skip
    config = AutoConfig.for_model(family, **{**settings, **CONFIGS[family], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with (
            torch.no_grad()
        ):  # norms and biases that differ from their defaults, so that a lost one shows
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                    assert parameter.isfinite().all(), name
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>",
        model_max_length=POSITIONS,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SWITCHES = [  # quiet: no lookups of its own
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield running
        running.close()


@pytest.fixture
def window(browser):
    """`window(address, width, scheme)`: a page, opened; its requests and complaints are kept."""
    pages = []

    def open_page(address, width, scheme):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
