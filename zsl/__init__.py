"""Creativity-inspired generative zero-shot learning from text: GAZSL, CIZSL, CIZSLv2, two plain baselines and an honest
protocol. See docs/zsl.md; `python -m zsl --help` lists the commands."""
