"""The steps of a Dockerfile as a shell script that runs where no container engine is.

Each stage is a copy-on-write layer over the machine's own file system (overlayfs in memory, in a mount namespace of its
own), entered with chroot: nothing of the machine is changed, and every ``RUN`` runs as it stands in the file. What
differs from a build: the base is this machine, which must be the Debian that ``FROM`` names, with its Python; what is
installed here already is there, and pip's configuration is this machine's.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PRELUDE = r"""
set -euo pipefail
mount -t tmpfs -o size=8g tmpfs "$WORK"
begin() {
  STAGE=$1; ROOT=$WORK/$1/root; DIRECTORY=/; WHO=0:0
  mkdir -p "$WORK/$1/upper" "$WORK/$1/work" "$ROOT"
  mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/$1/upper,workdir=$WORK/$1/work" "$ROOT"
  mount -t proc proc "$ROOT/proc"
  mount --rbind /dev "$ROOT/dev"
  mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
  # As in the image: python is in /usr/local/bin, and everybody may run it.
  ln -sfn "$PYTHON" "$ROOT/usr/local/bin/python"
  for path in $(python_folders); do chmod o+x "$ROOT$path"; done
  rm -rf "$ROOT/opt/fano" "$ROOT/src" "$ROOT/data" "$ROOT/cache"
}
python_folders() {
  local path; path=$(dirname "$PYTHON")
  while [ "$path" != / ]; do echo "$path"; path=$(dirname "$path"); done
}
in_stage() { chroot --userspec="$WHO" "$ROOT" /bin/sh -c "cd $DIRECTORY && $1"; }
workdir() { DIRECTORY=$1; mkdir -p "$ROOT$1"; }
from_context() {
  local target=${!#} source; [[ $target == /* ]] || target=$DIRECTORY/$target
  for source in "${@:1:$#-1}"; do
    if [ -d "$CONTEXT/$source" ]; then
      mkdir -p "$ROOT$target"
      tar -C "$CONTEXT/$source" --exclude=__pycache__ --exclude='*.so' -c . | tar -C "$ROOT$target" -x --no-same-owner
    else cp "$CONTEXT/$source" "$ROOT$target"; fi
  done
}
from_stage() { mkdir -p "$(dirname "$ROOT$3")"; cp -a "$WORK/$1/root$2" "$ROOT$3"; }
"""

# The container as docker-compose.yml starts it, in a network of its own.
RUN = r"""
mkdir -p "$ROOT/run/secrets" "$ROOT/prometheus" "$ROOT/etc/prometheus"
mount -t tmpfs tmpfs "$ROOT/run/secrets"
printf '%s\n' a-long-random-string > "$ROOT/run/secrets/fano_api_key"
chmod 0444 "$ROOT/run/secrets/fano_api_key"
for volume in data cache; do
  owner=$(stat -c %u:%g "$ROOT/$volume"); mount -t tmpfs tmpfs "$ROOT/$volume"; chown "$owner" "$ROOT/$volume"
done
mount -t tmpfs tmpfs "$ROOT/prometheus"; chown 65534:65534 "$ROOT/prometheus"
mount --bind "$CONTEXT/deploy/prometheus" "$ROOT/etc/prometheus"
echo '127.0.0.1 localhost fano prometheus' > "$ROOT/etc/hosts"
mount --bind "$ROOT/etc/hosts" /etc/hosts
mount -o remount,ro "$ROOT"
export ROOT DIRECTORY WHO
exec unshare --net bash -c "$INSIDE"
"""
INSIDE = r"""
set -euo pipefail
ip link set lo up
no_rights=(--clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs)
as() {
  local who=$1; shift
  chroot "$ROOT" setpriv --reuid "${who%:*}" --regid "${who#*:}" "${no_rights[@]}" "$@"
}
KEY=$(cat "$ROOT/run/secrets/fano_api_key")
environment=(env -i "${ENVIRONMENT[@]}" HOME=/home/fano)
"${environment[@]}" chroot "$ROOT" setpriv --reuid "${WHO%:*}" --regid "${WHO#*:}" "${no_rights[@]}" \
  sh -c "cd $DIRECTORY && exec $COMMAND" > "$LOGS/fano.log" 2>&1 &
server=$!
for _ in $(seq 240); do
  if as "$WHO" env "${ENVIRONMENT[@]}" "${HEALTH[@]}" 2> "$LOGS/health.log"; then healthy=1; break; fi
  kill -0 "$server" || { tail -c 3000 "$LOGS/fano.log"; exit 1; }
  sleep 0.5
done
echo "told healthy ${healthy:-0}"
echo "told uid $(awk '/^Uid/ {print $2}' "$ROOT/proc/$server/status")"
echo "told capabilities $(awk '/^CapBnd/ {print $2}' "$ROOT/proc/$server/status")"
as "$WHO" touch /home/fano/x 2> /dev/null && echo "told written_outside yes" || echo "told written_outside no"
as 65534:65534 prometheus "${PROMETHEUS[@]}" > "$LOGS/prometheus.log" 2>&1 &
watcher=$!
ask() { curl -s -o /dev/null -w '%{http_code}' "$@"; }
body='{"model":"fano-reader","messages":[{"role":"user","content":"Hello"}],"max_tokens":4}'
chat=(-H 'Content-Type: application/json' -d "$body" http://fano:8000/v1/chat/completions)
echo "told without_key $(ask "${chat[@]}")"
echo "told with_key $(ask -H "Authorization: Bearer $KEY" "${chat[@]}")"
echo "told scrape_without_key $(ask http://fano:8000/metrics)"
echo "told console $(ask -H "Authorization: Bearer $KEY" http://fano:8000/)"
upload=(-F "file=@$CONTEXT/README.md;type=text/markdown" http://fano:8000/v1/documents)
echo "told document $(ask -H "Authorization: Bearer $KEY" "${upload[@]}")"
for _ in $(seq 60); do
  up=$(curl -s --data-urlencode 'query=up{job="fano"}' http://prometheus:9090/api/v1/query || true)
  case $up in *'"1"]'*) break ;; esac; sleep 1
done
echo "told up $up"
echo "told rules $(curl -s http://prometheus:9090/api/v1/rules | grep -o '"type":"alerting"' | wc -l)"
kill -TERM "$server"; status=0; wait "$server" || status=$?
echo "told exit $status"
kill "$watcher"; wait "$watcher" || true
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction, with its lines joined and its comments left out."""

    instruction: str
    rest: str


def steps(text: str) -> Iterator[Step]:
    """The instructions in their order."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for joined in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if joined.strip():
            instruction, _, rest = joined.strip().partition(" ")
            yield Step(instruction, rest.strip())


def script(dockerfile: str, arguments: Mapping[str, str], prometheus: Sequence[str]) -> str:
    """A bash script of it: builds every stage, then runs the last one beside a Prometheus with these options."""
    lines = [PRELUDE]
    environment: dict[str, str] = {}
    health = command = ""
    for step in steps(dockerfile):
        match step.instruction, step.rest:
            case "FROM", rest:
                environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
                name = rest.split()
                lines.append(f"begin {name[2] if len(name) == 3 else 'final'}")
            case "ARG", rest:
                name_, _, default = rest.partition("=")
                lines.append(f"export {name_}={shlex.quote(arguments.get(name_, default.strip(chr(34))))}")
            case "ENV", rest:
                environment |= {
                    key: value.replace("$PATH", environment["PATH"])
                    for key, value in (pair.split("=", 1) for pair in shlex.split(rest))
                }
            case "WORKDIR", rest:
                lines.append(f"workdir {rest}")
            case "USER", rest:
                lines.append(f"WHO={rest}")
            case "COPY", rest if rest.startswith("--from="):
                stage, source, target = rest.removeprefix("--from=").split()
                lines.append(f"from_stage {stage} {source} {target}")
            case "COPY", rest:
                lines.append(f"from_context {rest}")
            case "RUN", rest:
                lines += [f"echo 'step {step.instruction}' {shlex.quote(rest[:100])}", f"in_stage {shlex.quote(rest)}"]
            case "HEALTHCHECK", rest:
                health = rest.partition("CMD ")[2]
            case "CMD", rest:
                command = shlex.join(json.loads(rest))
            case "VOLUME" | "EXPOSE" | "STOPSIGNAL", _:
                pass
            case unknown:
                raise ValueError(f"{unknown} is not known here")
    arrays = {"ENVIRONMENT": [f"{key}={value}" for key, value in environment.items()], "HEALTH": json.loads(health),
              "PROMETHEUS": prometheus}  # fmt: skip
    declared = "".join(f"{name}=({shlex.join(values)})\n" for name, values in arrays.items())
    inside = f"COMMAND={shlex.quote(command)}\n{declared}{INSIDE}"
    return "\n".join([*lines, f"INSIDE={shlex.quote(inside)}", RUN])


def command(path: Path) -> list[str]:
    """How the script is run: in a mount and a process namespace of its own, so that all of it ends with it."""
    return ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "bash", str(path)]
