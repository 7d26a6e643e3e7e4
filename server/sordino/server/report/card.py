"""The model card of `adapter/`: what the adapter is, how to use it, and what privacy it carries."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sordino.server.report import formats
from sordino.server.report.audited import Audited
from sordino.server.report.files import write_atomically
from sordino.server.report.html import other_bound
from sordino.server.report.schema import RunReport
from sordino.server.report.standing import noise_standing, trust_in_words

_OTHER = {"user": "A user as a whole", "record": "One record of a user who takes part"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class BaseCard:
    """What a card says of the base.

    Attributes:
        name: The base's real name: a hub id, or the plain name of a model that is on no hub. Of
            a path only the last part is kept: a card is published, and a path is someone's disk.
        license: The base's SPDX identifier in lower case; None where it isn't known.
        gguf_file: The file's name inside the base's folder or repository, for a GGUF base.
    """

    name: str
    license: str | None = None
    gguf_file: str | None = None

    @property
    def public_name(self) -> str:
        """The name without any path."""
        if _HUB_ID.fullmatch(self.name):
            return self.name
        last = PurePosixPath(self.name.replace("\\", "/")).name
        return last.removesuffix(".gguf") or "unnamed-base"


def model_card(report: RunReport, base: BaseCard) -> str:
    """README.md of the adapter's folder, with its YAML front matter."""
    parts = (
        _front_matter(base),
        _introduction(report, base),
        _privacy(report),
        _results(report),
        _usage(base),
        _license(base),
    )
    return "\n\n".join(parts) + "\n"


def write_card(report: RunReport, base: BaseCard, adapter_folder: Path) -> Path:
    """Write the card as `adapter_folder`/README.md.

    Raises:
        ReportError: The folder can't be written.
    """
    path = adapter_folder / "README.md"
    write_atomically(path, model_card(report, base))
    return path


def _front_matter(base: BaseCard) -> str:
    # JSON strings are YAML strings: a name with a colon or a quote stays a name.
    license_id = base.license or "other"
    return "\n".join(
        (
            "---",
            f"base_model: {json.dumps(base.public_name)}",
            "library_name: peft",
            f"license: {json.dumps(license_id)}",
            "pipeline_tag: text-generation",
            "tags:",
            *(f"- {tag}" for tag in ("lora", "federated-learning", "differential-privacy")),
            "- sordino",
            "---",
        )
    )


def _introduction(report: RunReport, base: BaseCard) -> str:
    run = report.run
    data, quantization = _md(_basename(run.data)), _md(run.model.quantization)
    return (
        f"# LoRA adapter of {_md(base.public_name)}, fine-tuned over a federation\n\n"
        f"Made by Sordino in the run `{_code(run.id)}`: {run.clients} clients, "
        f"{run.rounds} rounds, data {data}. It was trained against the quantized file itself "
        f"({quantization}, SHA-256 `{_code(run.model.sha256)}`); on another quantization of the "
        "same model the logits differ a little."
    )


def _privacy(report: RunReport) -> str:
    claim = report.guarantee
    unit, other = claim.unit, claim.other
    standing = noise_standing(report)
    bound = f"ε ≤ {formats.epsilon(claim.epsilon.pld)} at δ = {formats.power(claim.delta)}"
    rest = f"ε {other_bound(report)}" if other.epsilon is not None else formats.NOT_BOUNDED
    headline = f"**{bound} for each {unit}.** {_OTHER[other.unit]}: {rest}."
    if not standing.claims:
        headline = "**This adapter carries no differential privacy.**"
        if claim.epsilon.pld is not None:
            headline += f" With secret noise the same mechanism would have {bound} for each {unit}."
    rows = (
        ("Unit", f"{unit}; {other.unit}: {rest} ({other.reason})"),
        (
            "ε",
            f"PLD {formats.epsilon(claim.epsilon.pld)}, RDP {formats.epsilon(claim.epsilon.rdp)}",
        ),
        ("δ", formats.power(claim.delta)),
        ("Neighbouring datasets", claim.neighbouring),
        ("Sampling", claim.sampling),
        ("Accountant", claim.accountant),
        ("Composition", claim.composition),
        ("Trust model", trust_in_words(claim.trust)),
        ("Noise source", f"{report.noise.source}. {standing.note}"),
        ("Noise multiplier, clip norm", _mechanism(report)),
        ("Audited leakage", Audited(report.leakage).short),
    )
    table = "\n".join(f"| {name} | {_md(value)} |" for name, value in rows)
    return f"## Privacy\n\n{headline}\n\n| | |\n|---|---|\n{table}\n\n{_not_covered(report)}"


def _mechanism(report: RunReport) -> str:
    noise = report.noise
    sigma, clip = formats.short(noise.noise_multiplier), formats.short(noise.clip_norm)
    steps = "sums of users' updates" if report.guarantee.unit == "user" else "steps of each client"
    return (
        f"\N{GREEK SMALL LETTER SIGMA} = {sigma}, C = {clip}, "
        f"{noise.steps} {steps} at sampling rate {formats.short(noise.sampling_rate)}"
    )


def _not_covered(report: RunReport) -> str:
    lines = [
        "other runs on the same records: their ε adds to this one;",
        "what the base model already knew, and memorised, before this run;",
        "who took part, when, and how many bytes each sent, as the network sees it;",
    ]
    if report.guarantee.trust == "central":
        lines.append("the clipped updates, which the coordinator sees and is trusted with;")
    if report.simulation_only:
        lines.append(
            "the exact losses and clip fractions of report.json: a simulation's, never a fleet's;"
        )
    other = report.guarantee.other
    if (other.unit, other.status) == ("user", "not bounded"):
        lines.append("a user's records taken together, where one user owns several;")
    lines.append("facts about a population that hold whether or not any one record is there.")
    return "Not covered by this ε:\n\n" + "\n".join(f"- {line}" for line in lines)


def _results(report: RunReport) -> str:
    figures = report.judged
    if figures is None:
        return "## Results\n\nUtility was not measured in this run."
    gain = figures.interval
    lines = [
        "| Run | Held-out loss after, nats per token | Gain | Interval |",
        "|---|---|---|---|",
    ]
    for name, one in (
        ("this adapter", figures),
        ("without privacy", report.utility.no_privacy),
        ("without federation", report.utility.no_federation),
    ):
        if one is not None and (name == "this adapter" or one is not figures):
            cells = (formats.plain(one.loss_after), formats.signed(one.interval.estimate))
            lines.append(f"| {name} | {' | '.join(cells)} | {formats.interval(one.interval)} |")
    how = (
        f"The base's loss on the same {figures.tokens} tokens is "
        f"{formats.plain(figures.loss_before)}. "
        f"Intervals: {gain.level:.0%}, {gain.method}, {gain.resamples} resamples."
    )
    return "## Results\n\n" + "\n".join(lines) + f"\n\n{how}"


def _usage(base: BaseCard) -> str:
    on_hub = _HUB_ID.fullmatch(base.name) is not None
    where = base.public_name if on_hub else "path/to/the/base"
    gguf = f", gguf_file={json.dumps(base.gguf_file)}" if base.gguf_file else ""
    remark = "" if on_hub else f"The base, {_md(base.public_name)}, is a local model.\n\n"
    return f"""## Use

{remark}```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = {json.dumps(where)}
model = AutoModelForCausalLM.from_pretrained(base{gguf})
model = PeftModel.from_pretrained(model, "path/to/this/adapter")
tokenizer = AutoTokenizer.from_pretrained(base{gguf})
```"""


def _license(base: BaseCard) -> str:
    if base.license is None:
        return (
            "## License\n\nThe base's license isn't known here. The adapter is bound by it and by "
            "the terms of the training data: fill in both before you publish."
        )
    return (
        f"## License\n\nThe base is under {_md(base.license)}; the adapter is bound by that "
        "license and by the terms of the training data."
    )


def _md(value: str) -> str:
    """Text that Markdown shows as it is, on one line and inside a table."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(value.split()))


def _code(value: str) -> str:
    return " ".join(value.replace("`", "'").split())


def _basename(data: str) -> str:
    return PurePosixPath(data.replace("\\", "/")).name or "unnamed"
