import pytest

from harness import cluster
from harness.cluster import options, places
from harness.errors import VtbenchError
from harness.spec import Resources


def node(labels=None, *, alive=True, **resources):
    renamed = {name.replace("accelerator_type_", "accelerator_type:"): amount for name, amount in resources.items()}
    return {"Alive": alive, "Resources": renamed, "Labels": labels or {}}


@pytest.fixture
def nodes(monkeypatch):
    there = [
        node({"zone": "a"}, CPU=8.0, GPU=2.0, memory=64 * 2**30, accelerator_type_H100=1.0),
        node({"zone": "b"}, CPU=4.0, memory=16 * 2**30),
        node({"zone": "c"}, alive=False, CPU=64.0, GPU=8.0, memory=2**40, accelerator_type_A100=1.0),
    ]
    monkeypatch.setattr(cluster.ray, "nodes", lambda: there)
    return there


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({}, 12),
        ({"cpus": 3}, 3),  # two on the first node, one on the second: a trial is on one node
        ({"cpus": 0.1}, 120),
        ({"gpus": 0.25}, 8),
        ({"gpus": 0.1, "cpus": 0.1}, 20),
        ({"gpus": 0.6}, 2),  # one on each GPU
        ({"gpus": 0.4}, 4),
        ({"gpus": 2}, 1),
        ({"memory": 2**33}, 10),
        ({"accelerator_type": "H100"}, 8),
        ({"labels": {"zone": "b"}}, 4),
    ],
)
def test_how_many_workers_the_nodes_hold(nodes, wanted, count):
    assert places(Resources(**wanted)) == count


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({"cpus": 9}, r"resources.cpus: 9 is not possible; Ray has 8 on its largest node"),
        ({"gpus": 3}, r"resources.gpus: 3 is not possible; Ray has 2 on its largest node"),
        ({"memory": 2**37}, r"resources.memory: 128 GiB is not possible; Ray has 64 GiB on its largest node"),
        ({"accelerator_type": "A100"}, r"resources.accelerator_type: A100 is not there; Ray has H100"),
        ({"labels": {"zone": "c"}}, r"resources.labels: zone=c is not there; Ray has zone=a, zone=b"),
        ({"labels": {"disk": "ssd"}}, r"resources.labels: disk=ssd is not there; Ray has no node with disk"),
        ({"gpus": 1, "labels": {"zone": "b"}}, r"resources: each is there, but no node has all of them together"),
    ],
)
def test_what_the_nodes_have_not(nodes, wanted, complaint):
    with pytest.raises(VtbenchError, match=f"^{complaint}$"):
        places(Resources(**wanted))
    del nodes[:]
    with pytest.raises(VtbenchError):
        places(Resources(**wanted))


def test_ray_is_asked_for_all_of_it():
    resources = Resources(cpus=2, gpus=0.5, memory=2**33, accelerator_type="H100", labels={"zone": "a"})
    assert options(resources) == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "memory": 2**33,
        "accelerator_type": "H100",
        "label_selector": {"zone": "a"},
    }
    import ray

    @ray.remote
    class Actor:
        pass

    Actor.options(**options(resources), max_restarts=0)
    Actor.options(**options(Resources()))
