"""The synthetic corpus: sentences from a small grammar, spoken by espeak-ng, in typical and simulated atypical styles.

Everything made here is synthetic. The styles are caricatures of acoustic signatures, not clinical models.
"""
