"""Score pickled batches with evaluate, in one process and in two: `python score_with_evaluate.py IN OUT`.

Stands alone, so that it shows what a user of the metric folders has who never imports gfm_hf.
"""

import multiprocessing
import pickle
import sys
from pathlib import Path

import evaluate


def add_batches(metric, batches):
    for predictions, references in batches:
        metric.add_batch(predictions=predictions, references=references)
    return metric


def second_process(metric_class, options, batches, compute_options):
    metric = metric_class(num_process=2, process_id=1, experiment_id="two", **options)
    assert add_batches(metric, batches).compute(**compute_options) is None


def two_processes(metric_class, options, batches, compute_options):
    job = (metric_class, options, batches[1::2], compute_options)
    other = multiprocessing.get_context("fork").Process(target=second_process, args=job)
    other.start()
    metric = metric_class(num_process=2, process_id=0, experiment_id="two", **options)
    scores = add_batches(metric, batches[::2]).compute(**compute_options)
    other.join()
    assert other.exitcode == 0
    return scores


def score(path, options, batches, compute_options):
    metric, scores = evaluate.load(path, **options), {}
    # One after the other: a second metric of the same name in use waits a second for a file of its own.
    scores["one"] = add_batches(metric, batches).compute(**compute_options)
    scores["again"] = add_batches(metric, batches[:1]).compute(**compute_options)
    for predictions, references in batches:
        for prediction, reference in zip(predictions, references):
            metric.add(prediction=prediction, reference=reference)
    scores["by_image"] = metric.compute(**compute_options)
    predictions, references = batches[0]
    scores["at_once"] = metric.compute(predictions=predictions, references=references, **compute_options)
    scores["nothing"] = add_batches(metric, [([], [])]).compute(**compute_options)
    scores["two"] = two_processes(type(metric), options, batches, compute_options)
    return scores


def error_of(path, call, **arguments):
    try:
        getattr(evaluate.load(path), call)(**arguments)
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    cases, mistakes = pickle.loads(Path(sys.argv[1]).read_bytes())
    results = {name: score(**case) for name, case in cases.items()}
    results["errors"] = [error_of(*place, **arguments) for *place, arguments in mistakes]
    assert "gfm_hf" not in sys.modules
    Path(sys.argv[2]).write_bytes(pickle.dumps(results))
