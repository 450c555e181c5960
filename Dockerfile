# `crome serve` on the CPU, with the packaged base inside: no network is needed to run it.
#
#   docker build --build-arg PIP_EXTRA_INDEX_URL=… -t crome .     (PyTorch's index of CPU builds)
#   docker run --rm -p 127.0.0.1:8000:8000 crome
#
# Arguments after the name are those of `crome serve`; mount adapters and key files read-only.
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src

ARG PIP_EXTRA_INDEX_URL=""
RUN pip install --no-cache-dir ".[serve]" -c constraints.txt \
 && useradd --create-home crome

USER crome
RUN crome assets

EXPOSE 8000
HEALTHCHECK --start-period=120s --timeout=5s CMD ["python", "-c", \
  "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["crome", "serve", "--host", "0.0.0.0"]
