"""The example of two servers and a balancer: what its files name, and that it streams."""

import re
from pathlib import Path

import yaml

from tests.vllm_server import PROCESSOR

FOLDER = Path(__file__).parents[3] / "examples" / "two_servers"
SERVICES = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
NGINX = (FOLDER / "nginx.conf").read_text()


def test_each_server_has_the_reward_and_a_gpu_of_its_own():
    servers = [service for service in SERVICES.values() if "build" in service]
    assert len(servers) == 2
    assert all(server["command"][1:] == ["--logits-processors", PROCESSOR] for server in servers)
    devices = [s["deploy"]["resources"]["reservations"]["devices"][0] for s in servers]
    assert [device["device_ids"] for device in devices] == [["0"], ["1"]]


def test_the_balancer_knows_the_servers_and_streams():
    upstream = re.findall(r"server (\w+):8000 ", NGINX)
    assert upstream == [name for name, service in SERVICES.items() if "build" in service]
    assert "proxy_buffering off" in NGINX and NGINX.count("{") == NGINX.count("}")
    assert re.fullmatch(r"\d+:80", *SERVICES["balancer"]["ports"]) and "listen 80;" in NGINX
