"""What is imported before workers are forked from the process that has imported it."""

from bsharp.processes import import_to_stay

import_to_stay("bsharp.experiment.jobs")
