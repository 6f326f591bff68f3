"""Backdoors in visual question answering, MCCI's table 2, row BLIP: ``bbx vqa``.

``triples`` has images with questions and answers, ``icons`` draws some, ``answering`` is BLIP with
MCCI's attack indication network, ``experiment`` poisons, trains and measures. It needs the extra
``vqa`` (transformers).
"""
