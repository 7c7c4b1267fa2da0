"""policy × problems → records → figures with intervals → results."""

from bsharp.evaluation.evaluate import RECORD_SCHEMA, evaluate, problem_set
from bsharp.evaluation.problem_figures import ProblemFigures, problem_figures
from bsharp.evaluation.results import RegimeRecords, build_results
from bsharp.evaluation.schema import SCHEMA_VERSION, Results, schema_markdown, validate_results
from bsharp.evaluation.summary import summarize

__all__ = [
    "RECORD_SCHEMA",
    "SCHEMA_VERSION",
    "ProblemFigures",
    "RegimeRecords",
    "Results",
    "build_results",
    "evaluate",
    "problem_figures",
    "problem_set",
    "schema_markdown",
    "summarize",
    "validate_results",
]
