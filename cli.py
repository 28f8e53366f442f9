"""The command line: the only place that prints, configures logging and chooses exit codes.

Every command is one typed configuration; its fields become the flags, the keys of ``--config
file.yaml`` and the entries of the run's record. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_origin

import typer

from data.config import Config, read_yaml
from data.errors import FrostlineError
from data.progress import Bars, Lines, Progress
from featurestore.config import ExtractConfig
from finetune.config import FinetuneConfig
from heads.config import CompareConfig, EvaluateConfig, FitConfig, PredictConfig, TuneConfig, ZeroShotConfig

PARTLY_FAILED = 3
"""Exit code of a command that finished although some samples failed."""

app = typer.Typer(
    name="frostline",
    help="Frozen embeddings, cached once under a fingerprint; light heads, trained in seconds and judged honestly.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, check, tend, export and import.")
app.add_typer(store_app, name="store")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StorePath = Annotated[Path, typer.Argument(help="The feature store.")]


# ------------------------------------------------------------------ one configuration, one command


def command(config: type[Config], *, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of one configuration as a command whose flags are the configuration's fields.

    Parameters
    ----------
    config
        The configuration; a field's description becomes its help, and its default is shown.
    name
        The command's name.
    """

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(run, eval_str=True).parameters.values() if p.name != "config"]
        fields = _parameters(config)

        def call(**given: Any) -> None:
            kwargs = {p.name: given.pop(p.name) for p in own}
            file = given.pop("config_file")
            values = read_yaml(file) if file else {}
            flags = {key: value for key, value in given.items() if value is not None}
            run(config.build({**values, **flags}, where=f"{file} and flags" if file else "frostline " + name), **kwargs)

        call.__doc__ = run.__doc__
        call.__signature__ = inspect.Signature([*fields, *own])  # type: ignore[attr-defined]
        app.command(name)(call)
        return run

    return register


def _parameters(config: type[Config]) -> list[inspect.Parameter]:
    """Return a configuration's fields as Typer parameters; an unset flag is None, so that a file can set it."""
    arguments, options = [], []
    for field, info in config.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, Mapping) else {}
        default = "" if info.is_required() or info.default in (None, {}, (), False) else f" [default: {info.default}]"
        description = info.description or ""
        text = f"{description[:1].upper()}{description[1:]}.{default}"
        place = extra.get("positional")
        if place is not None:
            kind: Any = Annotated[Path | None, typer.Argument(help=text, show_default=False)]
            arguments.append((place, inspect.Parameter(field, _KEYWORD, default=None, annotation=kind)))
            continue
        flag = "--" + field.replace("_", "-")
        many = get_origin(info.annotation) in (tuple, dict)
        switch = info.annotation is bool
        value: Any = bool if switch else list[str] if many else str
        metavar = None if switch else ("KEY=VALUE" if get_origin(info.annotation) is dict else field.upper())
        option = typer.Option(flag, help=text, show_default=False, metavar=metavar)
        options.append(inspect.Parameter(field, _KEYWORD, default=None, annotation=Annotated[value | None, option]))
    file = typer.Option("--config", help="A YAML file of these options; flags win.", show_default=False)
    options.append(inspect.Parameter("config_file", _KEYWORD, default=None, annotation=Annotated[Path | None, file]))
    return [parameter for _, parameter in sorted(arguments, key=lambda pair: int(str(pair[0])))] + options


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


# ------------------------------------------------------------------ commands


@command(ExtractConfig, name="extract")
def extract(
    config: ExtractConfig,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and how long it takes.")] = False,
    as_json: Json = False,
) -> None:
    """Encode what the store does not hold yet."""
    from featurestore import extract as extraction
    from featurestore.forecast import forecast

    if dry_run:
        with _progress() as progress:
            outlook = forecast(extraction.prepare(config, create=False, progress=progress))
        _print(outlook.to_dict() if as_json else outlook.explain())
        return
    with _progress() as progress, _stop_on_signal() as stop:
        summary = extraction.extract(config, progress=progress, stop=stop)
    _print(summary.to_dict() if as_json else summary.explain())
    _list_failures(summary.failures)
    if summary.interrupted is not None:
        _say("interrupted; what was encoded is stored. The same command goes on from here.")
        raise typer.Exit(128 + summary.interrupted)
    if summary.failures:
        raise typer.Exit(PARTLY_FAILED)


@command(FitConfig, name="fit-head")
def fit_head(config: FitConfig, *, as_json: Json = False) -> None:
    """Fit a head on stored embeddings and judge it on data it has not seen."""
    from heads.fit import fit
    from heads.pages.table import metric_table

    with _progress() as progress:
        record = fit(config, command=_command_line(), progress=progress)
    for warning in record.warnings:
        _say(f"warning: {warning}")
    _print(record.to_dict() if as_json else metric_table(record.metrics))
    _say(f"run: {config.out}  report: {config.out / 'report.html'}")


@command(ZeroShotConfig, name="zero-shot")
def zero_shot(config: ZeroShotConfig, *, as_json: Json = False) -> None:
    """Tell classes apart by their prompts alone, without training, and judge that."""
    from heads.pages.table import metric_table
    from heads.zero_shot import zero_shot as run_zero_shot

    with _progress() as progress:
        record = run_zero_shot(config, command=_command_line(), progress=progress)
    for warning in record.warnings:
        _say(f"warning: {warning}")
    _print(record.to_dict() if as_json else metric_table(record.metrics))
    _say(f"run: {config.out}  report: {config.out / 'report.html'}")


@command(CompareConfig, name="compare")
def compare(config: CompareConfig, *, as_json: Json = False) -> None:
    """Compare heads and encoders on the same rows and folds, with intervals, paired tests and ranks."""
    from heads.compare import compare as run_comparison
    from heads.comparing.table import cells_table

    with _progress() as progress:
        result = run_comparison(config, command=_command_line(), progress=progress)
    tables = [f"{standing.name}, {standing.judge}\n{cells_table(standing)}" for standing in result.standings]
    _print(result.to_dict() if as_json else "\n\n".join(tables))
    for each in result.failed:
        _say(f"failed: {each.data}, {each.head} on {each.encoder}: {each.reason}")
    _say(f"*: best, =: not told from it.  table: {config.out / 'table.csv'}  report: {config.out / 'report.html'}")
    if result.failed:
        raise typer.Exit(PARTLY_FAILED)


@command(TuneConfig, name="tune")
def tune(config: TuneConfig, *, as_json: Json = False) -> None:
    """Search heads, their parameters and their features; the same command goes on after an interruption."""
    from heads.tune import tune as run_study
    from heads.tuning.page import text

    with _progress() as progress:
        record = run_study(config, command=_command_line(), progress=progress)
    for warning in record.warnings:
        _say(f"warning: {warning}")
    _print(record.to_dict() if as_json else text(record))
    _say(f"best: {config.out / 'best.yaml'}  report: {config.out / 'report.html'}")


@command(FinetuneConfig, name="finetune")
def finetune(config: FinetuneConfig, *, as_json: Json = False) -> None:
    """Train through an encoder, judge it, and hand it back; the same command goes on after an interruption."""
    from finetune.fit import finetune as run_finetune
    from finetune.table import split_table

    with _progress() as progress:
        record = run_finetune(config, command=_command_line(), progress=progress)
    if os.environ.get("RANK", "0") != "0":  # of several processes, one speaks
        return
    for warning in record.warnings:
        _say(f"warning: {warning}")
    _print(record.to_dict() if as_json else split_table(record.metrics))
    _say(f"encoder: {config.out / 'encoder'}  report: {config.out / 'report.html'}")


@command(EvaluateConfig, name="evaluate")
def evaluate(config: EvaluateConfig, *, as_json: Json = False) -> None:
    """Judge a fitted head or a fine-tuned run on samples that it has not seen, with its own thresholds."""
    from finetune.record import is_finetuned
    from finetune.table import split_table

    with _progress() as progress:
        if is_finetuned(config.run):
            from finetune.evaluate import evaluate as evaluate_run
        else:
            from heads.evaluate import evaluate as evaluate_run
        result = evaluate_run(config, command=_command_line(), progress=progress)
    for warning in result.warnings:
        _say(f"warning: {warning}")
    _print(result.to_dict() if as_json else split_table({result.split: {**result.metrics, **result.sets}}))


@command(PredictConfig, name="predict")
def predict(config: PredictConfig, *, as_json: Json = False) -> None:
    """Predict with a fitted head; encode what is not in the store."""
    from finetune.record import is_finetuned

    if is_finetuned(config.run):
        from finetune.predict import predict as predict_run
    else:
        from heads.predict import predict as predict_run
    with _progress() as progress:
        result = predict_run(config, progress=progress)
    beside = f", their neighbours to {result.neighbours}" if result.neighbours else ""
    _print(result.to_dict() if as_json else f"{result.rows} predictions written to {config.out}{beside}")
    for reason, names in result.masked.items():
        _say(f"{len(names)} samples are predicted from their other embeddings ({reason})")
    _list_failures(result.failures)
    if result.failures:
        raise typer.Exit(PARTLY_FAILED)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML page to write.")],
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from heads.pages.report import write_report

    _print(str(write_report(runs, out)))


@app.command()
def difference(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    others: Annotated[list[Path], typer.Argument(help="Runs that were judged on the same rows.")],
    split: Annotated[str, typer.Option("--split", help="The rows: test, val or cv.")] = "test",
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="A metric; default: the first three of the task.")
    ] = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=2, help="Resamples of groups behind each test.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the resamples.")] = 0,
    as_json: Json = False,
) -> None:
    """Test whether a run differs from others on the rows that all of them judged: heads and fine-tuned runs alike."""
    from heads.difference import difference as run_difference

    found = run_difference(run, others, split=split, metrics=metric or (), n_boot=bootstrap, seed=seed)
    for warning in found.warnings:
        _say(f"warning: {warning}")
    _print(found.to_dict() if as_json else found.table())
    _say(f"{found.rows} {found.split} rows of {found.groups} groups, resampled as wholes; p by Holm over all of these")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="The directory to write.")] = Path("demo"),
) -> None:
    """Run the main job offline: real digit images, real ImageNet weights, several heads, one report."""
    from heads.demo import run_demo

    with _progress() as progress:
        result = run_demo(out, progress=progress)
    _print(result.table)
    _say(f"report: {result.report}")


@app.command()
def encoders(as_json: Json = False) -> None:
    """List encoder families and aliases."""
    from featurestore import catalog

    _print(catalog.to_dict() if as_json else catalog.explain())


@app.command("heads")
def list_heads(as_json: Json = False) -> None:
    """List heads, their task kinds and parameters."""
    from heads import catalog

    _print(catalog.to_dict() if as_json else catalog.explain())


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the installation: versions, devices, weights, caches, and who owns the package names."""
    from featurestore.doctor import examine

    findings = examine()
    _print([finding.to_dict() for finding in findings] if as_json else "\n".join(map(str, findings)))
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(2)


# ------------------------------------------------------------------ store


@store_app.command("ls")
def store_ls(store: StorePath, as_json: Json = False) -> None:
    """List the feature sets of a store."""
    from featurestore import describe
    from featurestore.store import FeatureStore

    rows = describe.listing(FeatureStore(store))
    _print(rows if as_json else describe.listing_text(rows))


@store_app.command("info")
def store_info(
    store: StorePath,
    encoder: Annotated[str | None, typer.Option("--encoder", help="Only this encoder.")] = None,
    as_json: Json = False,
) -> None:
    """Explain each fingerprint in words: what made the embeddings, and what would change them."""
    from featurestore import describe
    from featurestore.store import FeatureStore

    rows = describe.details(FeatureStore(store), encoder)
    _print(rows if as_json else "\n\n".join(map(describe.detail_text, rows)))


@store_app.command("verify")
def store_verify(
    store: StorePath,
    deep: Annotated[bool, typer.Option("--deep/--quick", help="Check every checksum, or only the structure.")] = True,
    as_json: Json = False,
) -> None:
    """Check a store's structure and checksums; exit code 4 if it is damaged."""
    from featurestore.store import FeatureStore
    from featurestore.verify import verify_store

    with _progress() as progress:
        found = verify_store(FeatureStore(store), deep=deep, progress=progress)
    _print(found.to_dict() if as_json else found.explain())
    if found.problems:
        raise typer.Exit(4)


@store_app.command("gc")
def store_gc(
    store: StorePath,
    older_than_hours: Annotated[
        float, typer.Option("--older-than", min=0, help="Only files older than this, hours.")
    ] = 24,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only list.")] = False,
    as_json: Json = False,
) -> None:
    """Find what crashed writers and compaction left behind."""
    from featurestore import maintenance
    from featurestore.store import FeatureStore

    found = maintenance.gc(FeatureStore(store), older_than_hours=older_than_hours, dry_run=not delete)
    _print(found.to_dict() if as_json else found.explain())


@store_app.command("compact")
def store_compact(store: StorePath, as_json: Json = False) -> None:
    """Merge the parts of each feature set."""
    from featurestore import maintenance
    from featurestore.store import FeatureStore

    rows = [maintenance.compact(features) for features in FeatureStore(store).features()]
    _print([row.to_dict() for row in rows] if as_json else "\n".join(row.explain() for row in rows))


@store_app.command("export")
def store_export(
    store: StorePath,
    out: Annotated[Path, typer.Option("--out", help="The HDF5 file to write.")],
    encoder: Annotated[list[str] | None, typer.Option("--encoder", help="Only these encoders.")] = None,
) -> None:
    """Write feature sets into one HDF5 file."""
    from featurestore.hdf5 import export_hdf5
    from featurestore.store import FeatureStore

    opened = FeatureStore(store)
    chosen = [opened.find(name) for name in encoder] if encoder else opened.features()
    _print(str(export_hdf5(chosen, out)))


@store_app.command("import")
def store_import(
    source: Annotated[Path, typer.Argument(help="An HDF5 file, or a folder of one file per slide.")],
    store: Annotated[Path, typer.Option("--store", help="The feature store; made if it does not exist.")],
    name: Annotated[str | None, typer.Option("--name", help="The encoder id to import foreign features under.")] = None,
) -> None:
    """Read features made elsewhere (our own export, or CLAM / TRIDENT style)."""
    from featurestore.hdf5 import import_hdf5
    from featurestore.store import FeatureStore

    imported = import_hdf5(source, FeatureStore(store, create=True), name=name)
    _print("\n".join(each.explain() for each in imported))


# ------------------------------------------------------------------ output


def _print(result: Any) -> None:
    """Write a result to stdout: text as it is, anything else as JSON."""
    text = result if isinstance(result, str) else json.dumps(result, indent=2, allow_nan=False, default=str)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say(message: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(message + "\n")


def _list_failures(failures: Sequence[Mapping[str, str]]) -> None:
    for failure in failures[:10]:
        _say(f"failed [{failure['kind']}]: {failure['message']}")
    if len(failures) > 10:
        _say(f"... and {len(failures) - 10} more, all listed in the store's ledger")


def _command_line() -> str:
    import shlex

    return shlex.join(["frostline", *sys.argv[1:]])


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show progress on stderr: bars on a terminal, plain lines elsewhere."""
    with Bars() if sys.stderr.isatty() else Lines(sys.stderr) as display:
        yield display


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], int | None]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the current batch; the second one kills."""
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        _say("stopping after this batch; once more to stop at once")

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------ entry


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM: unwinds like an error, so that nothing half-written stays behind."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise _Interrupted(number)


def main() -> None:
    """Run the command line and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell that starts a job in the background may have asked it to ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    A user's error ends in one line on stderr; an error of ours is a traceback and exit code 1.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        code = app(args=list(arguments), prog_name="frostline", standalone_mode=False)
    except FrostlineError as error:
        _say(f"frostline: error: {' '.join(str(error).split())}")
        return error.exit_code
    except typer.TyperException as error:
        message = error.format_message()
        # A group that is called without a command answers with its help.
        is_help = message.startswith("Usage:")
        _say(message if is_help else f"frostline: error: {' '.join(message.split())} Try --help.")
        return 2
    except _Interrupted as interrupted:
        _say("frostline: interrupted")
        return 128 + interrupted.number
    except BrokenPipeError:
        # The reader of our output went away; point stdout elsewhere, so that the interpreter can close it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
