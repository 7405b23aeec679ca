# internlm-chat

InternLM3-8B-Instruct on one NVIDIA GPU in Kubernetes. An init container brings the model onto a volume, once and verified; one pod serves it.

```sh
helm install chat oci://ghcr.io/internlm-chat/charts/internlm-chat --wait --timeout 3600s
kubectl port-forward service/chat-internlm-chat 6006 &
curl http://127.0.0.1:6006/v1/chat -H 'Content-Type: application/json' -d '{"prompt": "你好"}'
```

No GPU at hand? `--set mode=cpu` serves a small real chat model anywhere, kind included, with the same API, probes, metrics and drain.

## What it needs
- Kubernetes 1.25 or later; a node with an NVIDIA GPU of 24 GB or more and the device plugin (`nvidia.com/gpu`).
- A StorageClass that gives 30Gi. The claim outlives `helm uninstall`, so that the next install downloads nothing.

## How to
| You want | Set |
| --- | --- |
| a MIG slice | `gpu.resource=nvidia.com/mig-3g.40gb` |
| a pinned model | `model.revision=<commit>` |
| a private hub | `model.endpoint`, `model.tokenSecret.name` |
| no connection to the outside | `airGap=true` with `model.source=volume` and `storage.existingClaim` (or `model.source=image`) |
| API keys | a Secret with one key a line, `apiKeys.secretName` |
| longer answers | `requestTimeout`: server, drain, grace period, Ingress and HTTPRoute follow |
| a slow network or disk | `startupBudget`: download, startup probe, progress deadline follow |
| more than one GPU | `replicas` with `storage.accessMode=ReadWriteMany`, or with `storage.perReplica=true` |
| scaling on waiting requests | `autoscaling.kind=hpa` or `keda` |
| an upgrade without a pause | `rollout.surge=true`: a spare GPU and a volume both pods can mount |
| alerts and dashboards | `monitoring.scrape=serviceMonitor`, `monitoring.rules=true`, `monitoring.dashboards.enabled=true` |
| OpenShift | `pod.securityContext={runAsUser: null, runAsGroup: null, fsGroup: null}` |

Values that cannot work together are refused with a sentence before anything is installed: two replicas on one ReadWriteOnce volume, a grace
period shorter than the longest answer, a claim smaller than the model, and so on.

## What happens when
- **Upgrade, drain, delete**: the pod first goes on for `rollout.preStopDelay` seconds until no one sends it new requests, then refuses new ones with
  503 and finishes every answer it has begun. Only then does it end. With one GPU the new pod starts after the old one (`Recreate`).
- **Values of an earlier release** are kept by `helm upgrade --reset-then-reuse-values`: with `--reuse-values` alone what a newer chart has new is missing,
  and the chart says which.
- **Uninstall**: the claim stays (`storage.keep`). Reinstalling under the same name takes it up again and downloads nothing.
- **Another StorageClass or access mode**: Kubernetes changes neither for a claim that exists. Uninstall, delete the claim, install again: the model is
  downloaded anew; or copy it to a claim of your own and name that in `storage.existingClaim`. A larger size works where the class can expand.
- **`helm test`** leaves its finished pod behind for its log; the next test replaces it.
- **A GPU nobody has tried**: at every start each kernel is compared with torch on the very card, and timed against it. What fails is replaced by
  torch's own operations, slower and never wrong, and named with its reason in `degraded` of `GET /`, in `internlm_engine_degraded` and in the log:
  a kernel by its name, `overlap` (launches that overlap, Hopper and later), `race` (the timing), `flash_prefill`, `flash_decode`, `cuda_graphs` and `segments` (recorded
  steps). A kernel that ends the engine's process is left out when that is started again. The image brings the kernels
  compiled for compute capabilities 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0 (build argument `KERNEL_TARGETS`); a first start on another card, or of a model of other shapes, compiles for some ten
  seconds, while the weights come off the volume.
- **The hub is down**: a complete model needs no network. An incomplete one is retried until `startupBudget` is over, and goes on where it stopped.

## Security
Both containers run as user 10001 with a read-only root, no capabilities, seccomp and no service account token: the namespace can enforce the
`restricted` Pod Security standard. Secrets are mounted as files by reference; none appears in a manifest or in the environment. Metrics have a port
and a Service of their own, which no Ingress leads to.

## Values
{{ values }}

## Server settings
Every other setting of the server, under `settings`. Unknown names and values out of bounds are refused by the chart's schema.

{{ settings }}
