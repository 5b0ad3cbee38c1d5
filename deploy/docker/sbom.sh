# Lists the Python packages below a prefix, with versions, licenses and dependencies, as CycloneDX.
# sh sbom.sh /install /sbom
set -eu
prefix=$1
folder=$2
mkdir -p "$folder"
# Python with -S finds packages through PYTHONPATH only, which the tool, run with -I, ignores.
PYTHONPATH=$(echo "$prefix"/lib/python3*/site-packages) python -I -m cyclonedx_py environment -S \
  --pyproject pyproject.toml --output-reproducible --output-file "$folder/sbom.cdx.json" "$(command -v python)"
