"""The audit of a run: what leaks, measured beside what was promised.

    plant(config, run, users, tokenizer)          # before training: commitments, coins, records
    outcome = audit_run(folder, "quick")           # after it: audit.json, and the report's section

Everything that a model has to be run for is done here, in parts that are kept one by one; what the
scores say is worked out by `sordino.privacy.audit`, from the scores alone.
"""
