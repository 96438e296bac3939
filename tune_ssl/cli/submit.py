"""`tune-ssl submit`: the same commands as jobs of a Ray cluster, and what becomes of them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tune_ssl.base.errors import Interrupted, Problem, Stopped, UserError
from tune_ssl.base.secrets import STORAGE, has_secret, redact
from tune_ssl.cli.options import Debug, all_overrides

app = typer.Typer()
submit_app = typer.Typer(invoke_without_command=True)
app.add_typer(submit_app, name="submit")

SERVER = "The cluster's job server: http://HOST:8265."
Address = Annotated[str | None, typer.Option(help=SERVER)]
AddressOrVariable = Annotated[
    str | None, typer.Option(help=SERVER, envvar="RAY_API_SERVER_ADDRESS")
]
Following = Annotated[
    bool, typer.Option("--follow/--no-follow", help="Show the job's log until it ends.")
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env", help="Name of an environment variable that the job gets too. Repeatable."
    ),
]
Python = Annotated[
    str, typer.Option(help="The cluster's Python, which has tune-ssl's dependencies.")
]
Rest = Annotated[
    list[str] | None, typer.Argument(help="What the command itself takes.", metavar="ARGUMENTS")
]


@submit_app.callback()
def submit(
    context: typer.Context,
    address: AddressOrVariable = None,
    follow: Annotated[str | None, typer.Option(metavar="JOB", help="Follow a job's log.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="Stop a job.")] = None,
    debug: Debug = False,
) -> None:
    """Run a search or an ablation as a job of a Ray cluster, with the code that is here."""
    if context.invoked_subcommand is not None:
        if follow or stop:
            raise UserError("give --follow JOB or --stop JOB alone")
        context.obj = address
        return
    if (follow is None) == (stop is None):
        raise UserError(
            "give a command to submit (search or ablate), or --follow JOB or --stop JOB"
        )
    from tune_ssl.cluster import submit_job

    address = _needed(address)
    client = submit_job.connect(address)
    if stop is not None:
        asked = submit_job.stop(client, stop)
        print(f"{stop} is asked to stop" if asked else f"{stop} had ended already")
    else:
        _follow(client, str(follow), address)


def _add_command(name: str, takes: str) -> None:
    def command(
        context: typer.Context,
        rest: Rest = None,
        address: Address = None,
        follow: Following = True,
        env: Env = None,
        python: Python = "python",
    ) -> None:
        parent: Any = context.find_root().command
        asked = parent.commands[name].make_context(f"tune-ssl submit {name}", rest or [])
        _send(asked, name, _needed(address or context.obj), follow, env or [], python)

    passed_on = {"ignore_unknown_options": True, "allow_interspersed_args": True}
    text = f"Submit `tune-ssl {name} ARGUMENTS`: {takes}."
    submit_app.command(name, help=text, context_settings=passed_on)(command)


_add_command("search", "a study's YAML file, overrides, options, or --resume RUN")
_add_command("ablate", "a run of the cluster, or a study's YAML file, and options")


def _send(
    asked: Any, name: str, address: str, following: bool, env: list[str], python: str
) -> None:
    """Submit the command `name` as it was asked for: `asked` is its click context."""
    from tune_ssl.cluster import submit_job

    given = {
        key: value
        for key, value in asked.params.items()
        if asked.get_parameter_source(key).name == "COMMANDLINE"
    }
    variables = submit_job.forwarded(env, os.environ)
    takes_file = "target" if name == "ablate" else "study"
    path = _study_file(name, asked.params)
    plugins = [Path(plugin) for plugin in asked.params["plugin"] or ()]
    files = [*([path] if path else ()), *plugins]
    if pipes := [file for file in files if file.is_fifo()]:  # it can be read only once
        text = "is a pipe, which cannot be uploaded"
        raise UserError([Problem(text, where=str(file)) for file in pipes])
    place = _checked(path, plugins, asked.params, variables)
    _refuse_secrets(given)
    client = submit_job.connect(address)
    with tempfile.TemporaryDirectory(prefix="tune-ssl-submit-") as temporary:
        staged = submit_job.stage(Path(temporary), files)
        if plugins:
            given["plugin"] = [staged[plugin] for plugin in plugins]
        if path:
            given[takes_file] = staged[path]
        options, arguments = _spelt(asked.command, given)
        line = submit_job.entrypoint(python, name, [("--address", "auto"), *options], arguments)
        job = submit_job.submit(client, line, Path(temporary), variables)
    print(f"submitted {job} to {address}; its runs are kept in {place}")
    if following:
        _follow(client, job, address)
    else:
        print(_how(job, address))


def _study_file(command: str, asked: Mapping[str, Any]) -> Path | None:
    """The YAML file that a command was given; None where it was given a run. UserError for neither."""
    if command == "search":
        if (asked["study"] is None) == (asked["resume"] is None):
            raise UserError("give either a study's YAML file or --resume RUN")
        return asked["study"] and Path(asked["study"])
    target = str(asked["target"])
    return Path(target) if target.endswith((".yaml", ".yml")) else None


def _checked(
    path: Path | None, plugins: list[Path], asked: Mapping[str, Any], variables: Mapping[str, str]
) -> str:
    """Where the runs are kept. UserError for what can be known here to fail there: a bad study, a lost run."""
    from tune_ssl.cluster import submit_job

    option, place = "--runs", str(asked["runs"])
    if path is not None:
        from tune_ssl.cluster.nodes import refuse_local_data
        from tune_ssl.study.study import check_name, load_study

        study = load_study(path, all_overrides(asked["overrides"], asked["data_root"]), plugins)
        check_name(asked["name"] or study.settings.name or study.name)
        refuse_local_data(study)
        if study.settings.storage is not None:
            option, place = "study.storage", study.settings.storage
    elif plugins:
        from tune_ssl.methods.plugins import load_plugins

        load_plugins(plugins)
    if STORAGE in variables:
        option, place = f"--env {STORAGE}", variables[STORAGE]
    if asked["storage"] is not None:
        option, place = "--storage", asked["storage"]
    _refuse_secrets({option: place})
    submit_job.refuse_lost_runs(place, option)
    return place


def _refuse_secrets(given: Mapping[str, Any]) -> None:
    """UserError for a secret in what the job server would store, and show to whoever may ask it."""
    problems = []
    for key, value in given.items():
        for text in map(str, value if isinstance(value, (list, tuple)) else [value]):
            if has_secret(text):
                hidden = (
                    f"has a secret ({redact(text)}), which the job server would show: give it to the job in "
                    "an environment variable, by --env NAME of `tune-ssl submit`"
                )
                problems.append(Problem(hidden, key))
    if problems:
        raise UserError(problems)


def _spelt(
    command: Any, given: Mapping[str, Any]
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Options and arguments that a command reads back as the values `given`."""
    options: list[tuple[str, str | None]] = []
    arguments: list[str] = []
    for parameter in command.params:
        value = given.get(parameter.name)
        if value is None:
            continue
        several = value if isinstance(value, (list, tuple)) else [value]
        if parameter.param_type_name == "argument":
            arguments += map(str, several)
        elif isinstance(value, bool):
            options.append(((parameter.opts if value else parameter.secondary_opts)[0], None))
        else:
            options += [(parameter.opts[0], str(item)) for item in several]
    return options, arguments


def _needed(address: str | None) -> str:
    if address is None:
        raise UserError("give --address http://HOST:8265, the cluster's job server")
    return address.rstrip("/")


def _how(job: str, address: str) -> str:
    ways = ("follow", "stop")
    return "; ".join(f"{way} it: tune-ssl submit --{way} {job} --address {address}" for way in ways)


def _follow(client: Any, job: str, address: str) -> None:
    """Follow a job to its end, and exit as it did. Ctrl-C leaves it running."""
    from tune_ssl.cluster import submit_job

    def write(text: str) -> None:
        print(text, end="", flush=True)

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    try:
        code = submit_job.follow(client, job, write, tell)
    except Interrupted:
        raise Interrupted(f"{job} goes on; {_how(job, address)}") from None
    except Stopped as error:
        raise Stopped(f"{error}; it may go on; {_how(job, address)}") from None
    if code:
        raise typer.Exit(code)
