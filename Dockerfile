# `crome` in a container, for a user without privileges.
#
#   docker build --build-arg PIP_EXTRA_INDEX_URL=… -t crome .     CPU; the index is PyTorch's of CPU builds
#   docker run --rm -p 127.0.0.1:8000:8000 crome                  serves the packaged base, without network
#
#   docker build --target gpu -t crome:gpu .                      CUDA, as PyTorch's usual build brings it
#   docker run --rm --gpus all -v ./runs:/runs -v models:/models crome:gpu \
#       train --checkpoint Qwen/Qwen3-VL-2B-Instruct --data /runs/rows.jsonl --out /runs/weld
#
# Arguments after the name are those of `crome`. Mount adapters and key files read-only.
FROM python:3.12-slim AS start
WORKDIR /app
# Packages are installed for a package without code, so that a change of source leaves their layers as they are.
COPY pyproject.toml constraints.txt ./
RUN mkdir -p src/crome \
 && touch src/crome/__init__.py README.md \
 && echo '__version__ = "0"' > src/crome/version.py \
 && useradd --create-home crome \
 && install --directory --owner crome /models /runs

FROM start AS gpu-packages
RUN pip install --no-cache-dir ".[serve,json,quantization]" -c constraints.txt

FROM gpu-packages AS gpu
COPY README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --no-deps --force-reinstall .
USER crome
ENV HF_HOME=/models
EXPOSE 8000
ENTRYPOINT ["crome"]
CMD ["serve", "--host", "0.0.0.0"]

FROM start AS cpu-packages
ARG PIP_EXTRA_INDEX_URL=""
RUN pip install --no-cache-dir ".[serve]" -c constraints.txt

FROM cpu-packages AS cpu
COPY README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --no-deps --force-reinstall .
USER crome
RUN crome assets
EXPOSE 8000
HEALTHCHECK --start-period=120s --timeout=5s CMD ["python", "-c", \
  "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["crome"]
CMD ["serve", "--host", "0.0.0.0"]
