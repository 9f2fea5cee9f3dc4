"""`hf-fst card`."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from hf_fst.errors import printable


def card(
    directory: Annotated[str, Argument(metavar="DIR", help="The output directory of a run.")],
    license: Annotated[
        str | None, Option(metavar="ID", help="License of the weights as the Hub spells it: apache-2.0, mit, ...")
    ] = None,
    name: Annotated[str | None, Option(metavar="NAME", help="The model's name on the card.")] = None,
    compare: Annotated[
        list[str] | None,
        Option(metavar="DIR", help="Other runs on the same data, to compare it with in a table; one or more."),
    ] = None,
) -> dict:
    """Rewrite the model card of a run.

    README.md is made from the files that the run left (fst_run.json, history.json), without training. Edits made to
    README.md by hand are lost.

    Examples:
      hf-fst card runs/street_da --license apache-2.0
      hf-fst card runs/street_da --compare runs/street_source_only
    """
    from hf_fst.publishing.card import left_out
    from hf_fst.publishing.facts import RunFacts
    from hf_fst.publishing.report import rewrite_report

    changes = {"license": license, "model_name": name}
    changes = {key: value for key, value in changes.items() if value is not None}
    path = rewrite_report(directory, compare or [], **changes)
    print(f"{path} is written.")
    for sentence in left_out(RunFacts.load(directory)):
        print(printable(sentence))
    return {"card": str(path)}
