"""Causal tracing: how much of an answer one place in the model brings back, once noise on the subject has spoilt it.

Meng et al. (2022), "Locating and Editing Factual Associations in GPT", section 2: every prompt is run clean; then with
Gaussian noise on the embeddings of all the subject's tokens; then with the same noise, and with what one place held in
the clean run put back there. The probability of the answer's first token that this brings back, P(restored) −
P(corrupted), is the indirect effect of that place.

Nothing is computed twice. The clean run happens once, the corrupted one once for each draw of noise; a cell starts
where it first differs from the corrupted run, from the hidden states that were kept there. What is restored in MLPs
and attention is the output of the module, also where a norm stands between it and the residual stream (Gemma): norms
work on each token alone, so restoring what goes into one restores what it adds to the stream.
"""
