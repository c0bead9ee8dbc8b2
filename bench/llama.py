"""llama.cpp as a peer: getting and building it, converting a checkpoint, its slots saved and restored.

    python -m bench.llama                     build it below the user's cache directory (a quarter of an hour, 2 cores)
    python -m bench.llama --directory DIR     elsewhere; LLAMA_CPP_DIRECTORY says the same

It is needed by benchmarks alone and lives outside the source tree. The sources are those that the PyPI package
llama-cpp-python carries; needed are cmake, ninja and a C++ compiler.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from platformdirs import user_cache_path

from bench.peers import Answer, Child, Listener, Message, Saved, Spent

PACKAGE = "llama-cpp-python==0.3.36"
VARIABLE = "LLAMA_CPP_DIRECTORY"
SWITCHES = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}
# llama.cpp's names of formats stand for themselves.
OUTTYPES = {"float32": "f32", "bfloat16": "bf16"}
SLOT_FILE = "session.bin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, default=default_directory())
    print(LlamaBuild(parser.parse_args().directory).make())


def default_directory() -> Path:
    return Path(os.environ.get(VARIABLE) or user_cache_path("fano-bench", appauthor=False) / "llama")


class LlamaBuild:
    """A directory with ``source`` (the unpacked package) and ``build``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.package = self.directory / "source"
        self.source = self.package / "vendor" / "llama.cpp"
        self.libraries = self.directory / "build" / "bin"
        self.server = self.libraries / "llama-server"

    @property
    def has_library(self) -> bool:
        """Whether the library and the bindings to it are there."""
        return (self.libraries / "libllama.so").is_file() and (self.package / "llama_cpp").is_dir()

    def make(self) -> Path:
        """Download, unpack and build what is missing; the path of the server."""
        if not self.source.is_dir():
            self._unpack()
        build = self.directory / "build"
        switches = [f"-D{name}={value}" for name, value in SWITCHES.items()]
        subprocess.run(["cmake", "-S", self.source, "-B", build, "-G", "Ninja", *switches], check=True)
        jobs = str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", build, "-j", jobs, "--target", "llama-server"], check=True)
        return self.server

    def _unpack(self) -> None:
        downloads = self.directory / "sdist"
        name = PACKAGE.partition("==")[0]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, PACKAGE, "-d", downloads]
        subprocess.run(pip, check=True)
        (archive,) = downloads.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(self.directory, filter="data")
        (self.directory / archive.name.removesuffix(".tar.gz")).rename(self.package)

    def convert(self, checkpoint: Path, dtype: str) -> Path:
        """A GGUF file of a checkpoint in Hugging Face layout, beside it."""
        gguf = self.gguf(checkpoint, dtype)
        command = [sys.executable, self.source / "convert_hf_to_gguf.py", checkpoint]
        command += ["--outtype", gguf.stem, "--outfile", gguf]
        subprocess.run(command, check=True, capture_output=True)
        return gguf

    def gguf(self, checkpoint: Path, dtype: str) -> Path:
        """Where ``convert`` puts it."""
        return checkpoint / f"{OUTTYPES.get(dtype, dtype)}.gguf"

    @property
    def version(self) -> str:
        """The package and the commit of llama.cpp in it, as its change log says."""
        found = re.search(r"llama\.cpp@(\w+)", (self.package / "CHANGELOG.md").read_text())
        return f"{PACKAGE} (llama.cpp {found[1] if found else 'of unknown commit'})"


class LlamaServer:
    """``llama-server`` with one slot.

    Prompts are sent as token ids and a reply goes on as the ids that were generated, not as text that is read anew:
    text drawn at random need not give the same ids again, and every id that differs would cost it the whole prompt.
    """

    def __init__(self, build: LlamaBuild, gguf: Path, directory: Path, threads: int, context: int) -> None:
        self.name = "llama.cpp"
        self.slots = directory / "slots"
        self.slots.mkdir(parents=True, exist_ok=True)
        self.child = Child(directory / "llama.log")
        self.tokenizer = tokenizers.Tokenizer.from_file(str(gguf.with_name("tokenizer.json")))
        self.command = [str(build.server), "-m", str(gguf), "-np", "1", "-c", str(context), "-t", str(threads)]
        self.command += ["--slot-save-path", str(self.slots)]
        self.heard: dict[str, list[int]] = {}

    def start(self) -> float:
        return self.child.start(self.command, "/health")

    def kill(self) -> None:
        self.child.kill()

    def ask(self, messages: Sequence[Message], max_tokens: int) -> Answer:
        prompt = render(messages)
        ids = self.ids_of(prompt)
        body = {
            "prompt": ids,
            "n_predict": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": True,
            "id_slot": 0,
        }
        listener, timings, drawn = Listener(self.child), None, []
        for event in self.child.stream("/completion", body):
            listener.hear(event["content"])
            drawn += event.get("tokens") or []
            timings = event.get("timings") or timings
        assert timings is not None, "the stream told no timings"
        self.heard[prompt + listener.text] = ids + drawn
        return listener.answer(len(ids), timings["prompt_n"])

    def ids_of(self, prompt: str) -> list[int]:
        """Ids of a prompt; as far as it repeats an earlier one and its reply, those of that."""
        known = max((text for text in self.heard if prompt.startswith(text)), key=len, default="")
        rest = self.tokenizer.encode(prompt[len(known) :], add_special_tokens=False).ids
        return self.heard.get(known, []) + rest

    def save(self) -> Saved:
        spent = self.child.post("/slots/0?action=save", {"filename": SLOT_FILE})
        return Saved(spent.seconds, (self.slots / SLOT_FILE).stat().st_size)

    def restore(self) -> Spent:
        return self.child.post("/slots/0?action=restore", {"filename": SLOT_FILE})

    def forget(self) -> None:
        (self.slots / SLOT_FILE).unlink(missing_ok=True)
        self.heard.clear()


def render(messages: Sequence[Message]) -> str:
    """The chat template of the embedded checkpoint, whose tokenizer the random models use."""
    turns = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
    return f"<|startoftext|>{turns}<|assistant|>"


if __name__ == "__main__":
    main()
