"""Which packets the network policies of an overlay let pass."""

import ipaddress

from tests.infra.links import NAMESPACE, Pod, selects
from tests.infra.manifests import Object


def allowed(items: list[Object], source: Pod | str, target: Pod | str, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies let a packet pass. A side that is a text is an address outside the cluster."""
    policies = [item["spec"] for item in items if item["kind"] == "NetworkPolicy"]

    def side(me: Pod | str, other: Pod | str, way: str, rules: str, peers: str) -> bool:
        if isinstance(me, str) or me.namespace != NAMESPACE:
            return True  # not ours to rule
        mine = [p for p in policies if way in p["policyTypes"] and selects(p["podSelector"], me.labels)]
        return not mine or any(_passes(rule, peers, other, port, protocol) for p in mine for rule in p.get(rules, []))

    return side(source, target, "Egress", "egress", "to") and side(target, source, "Ingress", "ingress", "from")


def _passes(rule: Object, peers: str, other: Pod | str, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any((p["port"], p["protocol"]) == (port, protocol) for p in ports):
        return False
    return peers not in rule or any(_is(peer, other) for peer in rule[peers])


def _is(peer: Object, other: Pod | str) -> bool:
    if isinstance(other, str):
        block = peer.get("ipBlock")
        address = ipaddress.ip_address(other)
        return block is not None and (
            address in ipaddress.ip_network(block["cidr"])
            and not any(address in ipaddress.ip_network(cidr) for cidr in block.get("except", []))
        )
    if "ipBlock" in peer:
        return False  # pods are met by their labels
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace}):
            return False
        return selects(peer.get("podSelector", {}), other.labels)
    return other.namespace == NAMESPACE and selects(peer.get("podSelector"), other.labels)
