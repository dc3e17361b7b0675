"""The test files that take longest, longest first.

Workers take files in the order of collection: a long one at the end would leave the other workers without work.
``pytest --durations=100`` shows whether the list is still right. No part of errata is imported here.
"""

LONGEST = (
    "test_patch_verbs.py", "test_bench_verb.py", "test_rows.py", "test_real_model.py", "test_crash.py",
    "test_save_verb.py", "targets/test_joint.py", "benchmark/test_recorded.py", "models/test_replay.py", "test_fuzz.py",
    "test_bench_real.py", "test_chat_real.py", "benchmark/test_recipe_search.py", "test_edit.py",
    "benchmark/test_campaign.py", "evaluation/test_ability.py", "analysis/test_factorial.py", "lab/test_training.py",
    "benchmark/test_remote.py", "editors/test_conformance.py", "editors/test_routed.py", "editors/test_trained_real.py",
)  # fmt: skip
