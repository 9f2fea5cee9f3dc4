"""How words on the command line become arguments, and how help looks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from hf_fst.errors import UsageError, did_you_mean


def dashed(name: str) -> str:
    """An option's name with dashes: `--batch_size` and `--batch-size` are the same option."""
    return name.replace("_", "-")


SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": dashed, "max_content_width": 110}


class _Explained:
    """A command whose docstring is its help: a first line for the list of commands, more, and examples.

    Help is plain text under the headings that `rich_help_panel` names: typer's own, drawn by rich, takes as long to
    import as everything else together, and wraps the examples.
    """

    def __init__(self, name: str | None = None, *, help: str, short_help: str | None = None, **options) -> None:
        text, _, self.examples = help.partition("\n\nExamples:\n")
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        super().__init__(name=name, help="\n\n".join(paragraphs), short_help=paragraphs[0], **options)

    def get_params(self, ctx: typer.Context) -> list:
        params = super().get_params(ctx)
        for param in params:
            # typer has None for --help and completion, and loads pydantic, which takes long, to convert it
            if isinstance(param, TyperOption) and param.is_flag and param.default is None:
                param.default = False
        return params

    def format_options(self, ctx: typer.Context, formatter) -> None:
        rows = ((param, param.get_help_record(ctx)) for param in self.get_params(ctx))
        self.write_groups(
            formatter,
            (
                ("Arguments" if isinstance(param, TyperArgument) else param.rich_help_panel, row)
                for param, row in rows
                if row is not None
            ),
        )

    @staticmethod
    def write_groups(formatter, rows: Iterable[tuple[str | None, tuple[str, str]]]) -> None:
        """Rows of a name and its help, each under the heading of its group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for group, row in rows:
            groups.setdefault(group or "Options", []).append(row)
        for group, members in groups.items():
            with formatter.section(group):
                formatter.write_dl(members)

    def format_epilog(self, ctx: typer.Context, formatter) -> None:
        formatter.write(f"\nExamples:\n{self.examples}\n")

    def refuse_unknown(self, ctx: typer.Context, words: Iterable[str]) -> None:
        """Raises `UsageError` for a long option that the command does not have. typer would do so too, but guess at
        options that are not close."""
        known = [name for param in self.get_params(ctx) for name in param.opts if name.startswith("--")]
        for word in () if ctx.resilient_parsing else words:
            name = word.partition("=")[0]
            if name.startswith("--") and dashed(name) not in map(dashed, known):
                hint = did_you_mean(name, known, f"`{ctx.command_path} --help` lists the options.")
                raise UsageError(f"`{ctx.command_path}` has no option {name}; {hint}")


class Group(_Explained, TyperGroup):
    """`hf-fst` itself."""

    def format_options(self, ctx: typer.Context, formatter) -> None:
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        self.refuse_unknown(ctx, itertools.takewhile(lambda word: word.startswith("-"), args))
        words = [] if ctx.resilient_parsing else [*itertools.takewhile(lambda word: word != "--", args)]
        for before, word in zip(["", *words], words, strict=False):
            name, equals, value = word.partition("=")
            if not word or (name.startswith("--") and equals and not value):
                name = name or (before if before.startswith("-") else "An argument")
                raise UsageError(f"{name} is empty; give a value, or leave it out.")
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: typer.Context, formatter) -> None:
        self.write_groups(
            formatter, ((each.rich_help_panel, (name, each.short_help)) for name, each in self.commands.items())
        )

    def resolve_command(self, ctx: typer.Context, args: list[str]):
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise UsageError(f"There is no command {args[0]!r}; {did_you_mean(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


class Command(_Explained, TyperCommand):
    """A command. An option that may be given several times also takes several values: `--options a=1 b=2`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        self.refuse_unknown(ctx, itertools.takewhile("--".__ne__, args))
        params = [param for param in self.params if isinstance(param, TyperOption) and param.multiple]
        several = {dashed(name) for param in params for name in param.opts}
        words, option = [], None
        for word in args:
            if word.startswith("-"):
                option, first = word if dashed(word) in several else None, True
            elif option is not None:
                words += [] if first else [option]
                first = False
            words.append(word)
        return super().parse_args(ctx, words)
