"""Learn who trusts whom from a signed graph, ask about a pair, and see which edges to doubt.

.venv/bin/python examples/trust.py
"""

from thrifty.graph import known
from thrifty.graph.audit import audit
from thrifty.graph.model import SignModel
from thrifty.graph.scorers.triads import Triads

read = known.load()  # a synthetic graph; give the path of your edges, or a name such as "bitcoin-otc"
print(*read.notes, sep="\n")
model = SignModel.fit(read.graph, Triads())

source, target = read.graph.source[:3], read.graph.target[:3]
for u, v, probability in zip(source, target, model.probability(source, target), strict=True):
    print(f"{read.graph.names[u]} -> {read.graph.names[v]}: positive with probability {probability:.2f}")

doubts = audit(model, read.graph)
for row in range(3):
    ends = (read.graph.names[doubts.edges.source[row]], read.graph.names[doubts.edges.target[row]])
    print(f"doubt {ends[0]} -> {ends[1]} ({doubts.edges.sign[row]:+d}): {doubts.reason(row)}")
