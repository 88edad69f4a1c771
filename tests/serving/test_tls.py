"""``ican serve`` with a certificate: a process that speaks TLS alone and ends in good order."""

import json
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import trustme

from tests.serving.processes import WAIT, answering, free_port


def test_the_service_speaks_tls_alone_and_ends_in_good_order(sim_bundle: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, port = tmp_path / "service.crt", tmp_path / "service.key", free_port()
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(certificate)
    command = [sys.executable, "-m", "ican_ml.cli", "serve", str(sim_bundle), "--port", str(port)]
    command += ["--tls-certificate", str(certificate), "--tls-key", str(key)]
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            ready = f"127.0.0.1:{port}/v2/health/ready"
            assert json.loads(answering(f"https://{ready}", trusting)) == {"ready": True}
            with pytest.raises(ConnectionError):
                urllib.request.urlopen(f"http://{ready}", timeout=WAIT)
            with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
                urllib.request.urlopen(f"https://{ready}", timeout=WAIT)
        finally:
            process.terminate()
        assert process.wait(WAIT) == 0
        assert process.stdout is not None
        assert f"https://127.0.0.1:{port}/" in process.stdout.read()
