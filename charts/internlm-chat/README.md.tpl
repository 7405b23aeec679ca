# internlm-chat

InternLM3-8B-Instruct on one NVIDIA GPU in Kubernetes. An init container brings the model onto a volume, once and verified; one pod serves it.

```sh
helm install chat oci://ghcr.io/internlm-chat/charts/internlm-chat --wait --timeout 3600s
kubectl port-forward service/chat-internlm-chat 6006 &
curl http://127.0.0.1:6006/v1/chat -H 'Content-Type: application/json' -d '{"prompt": "你好"}'
```

Or open http://127.0.0.1:6006/ui in a browser: a chat page, which needs nothing but the forwarded port.

No GPU at hand? `--set mode=cpu` serves a small real chat model on any x86-64 node, kind included, with the same API, probes, metrics and drain.

## What it needs
- Kubernetes 1.25 or later; a node with an NVIDIA GPU of 24 GB or more, or of 16 GB with [eight-bit weights](#eight-bit-weights), and the device plugin (`nvidia.com/gpu`).
- NVIDIA's driver 580 or later on that node (CUDA 13). The images are for x86-64 nodes, which the pods ask for; `pod.nodeSelector` names another `kubernetes.io/arch` for images of your own.
- 3 CPUs and 10Gi of memory free on that node, as the pod requests them: of 4 CPUs and 16 GB, as many nodes with one GPU of 24 GB have, that much is left. `resources` sets others.
- A StorageClass that gives 40Gi: two models of this size. The claim outlives `helm uninstall`, so that the next install downloads nothing.

## How to
| You want | Set |
| --- | --- |
| a GPU of 16 GB, or more chats at once on one of 24 GB | `settings.quantization=int8`: see [Eight-bit weights](#eight-bit-weights) |
| a MIG slice | `gpu.resource=nvidia.com/mig-3g.40gb` |
| a GPU by a claim (dynamic resource allocation) | `gpu.claimTemplate`: see [A GPU by a claim](#a-gpu-by-a-claim) |
| a pinned model | `model.revision=<commit>` |
| a private hub | `model.endpoint`, `model.tokenSecret.name` |
| no connection to the outside | `airGap=true` with `model.source=volume` or `image`: see [Without a connection](#without-a-connection) |
| API keys | a Secret with one key a line, `apiKeys.secretName` |
| longer answers | `requestTimeout`: server, drain, grace period, Ingress and HTTPRoute follow |
| a slow network or disk | `startupBudget`: download, startup probe, progress deadline follow |
| more than one GPU | `replicas` with `storage.accessMode=ReadWriteMany`, or with `storage.perReplica=true` |
| scaling on waiting and running requests | `autoscaling.kind=hpa` or `keda`, and `monitoring.scrape` |
| another model or revision | `model.revision`, `model.repository`, `model.source`: see [Another model](#another-model) |
| an upgrade without a pause | `rollout.surge=true`: a spare GPU and a volume both pods can mount |
| alerts and dashboards | `monitoring.scrape=serviceMonitor`, `monitoring.rules=true`, `monitoring.dashboards.enabled=true` |
| a way in from outside | `gateway.httpRoute.enabled=true` with `parentRefs`, or `ingress.enabled=true`: see [Through a proxy](#through-a-proxy) |
| IPv6, or both families | `settings.host="::"`, `service.ipFamilyPolicy=PreferDualStack` |
| OpenShift | `pod.securityContext.runAsUser=null,pod.securityContext.runAsGroup=null,pod.securityContext.fsGroup=null` |

Values that cannot work together are refused with a sentence before anything is installed: two replicas on one ReadWriteOnce volume, a grace
period shorter than the longest answer, a claim smaller than the model, and so on.

## What happens when
- **Upgrade, drain, delete**: the pod first goes on for `rollout.preStopDelay` seconds until no one sends it new requests, then refuses new ones with
  503 and finishes every answer it has begun. Only then does it end. With one GPU the new pod starts after the old one (`Recreate`).
- **What could keep the new pod from starting** is found while the old one still serves: before an upgrade to other images or settings, a Job pulls those, on the server's node if it has room, and tries
  these. If it fails, or is not done within helm's `--timeout` (five minutes as it comes, and the server's image is gigabytes), nothing has changed: `kubectl describe pod -l app.kubernetes.io/component=preflight`
  says why (or `kubectl describe job/<name>-preflight`, where no pod could be made), and the next try takes up what has arrived. The pause of an upgrade is then a load, not a pull. There is none where
  no pod is ready, with `rollout.surge`, where `storage.perReplica` is switched, and with `helm template` and Argo CD, which do not see what is deployed. `rollout.preflight=false` leaves it out, as for an
  upgrade that brings its own pull secret; and on GKE Autopilot, which lets nothing tolerate GPU nodes that asks for no GPU (there `rollout.prefetch=false`, too).
- **Settings are the pod's own** (its `env`): a pod that starts again while others are replaced, or after an upgrade that failed, has those that it had, and `kubectl rollout undo` brings them back with the image.
- **Another model or revision**: see [Another model](#another-model).
- **Values of an earlier release** are kept by `helm upgrade --reset-then-reuse-values`: with `--reuse-values` alone what a newer chart has new is missing,
  and the chart says which.
- **Uninstall**: the claim stays (`storage.keep`). Reinstalling under the same name takes it up again and downloads nothing.
- **Another StorageClass or access mode**: Kubernetes changes neither for a claim that exists. Uninstall, delete the claim, install again: the model is
  downloaded anew; or copy it to a claim of your own and name that in `storage.existingClaim`. A larger size works where the class can expand; with
  `storage.perReplica` it is in a StatefulSet, which Kubernetes does not let change: enlarge the claims, `kubectl delete statefulset <name> --cascade=orphan`, then upgrade. So is it there with a `model.source` that needs claims where there were none, or the other way round.
- **From `replicas` to `autoscaling`** an upgrade leaves as many pods as there are, and the autoscaler changes that. Who renders without a look at the cluster (`helm template`, Argo CD) has Kubernetes start from one pod
  then: have the field `spec.replicas` left alone (Argo CD: `ignoreDifferences` with `RespectIgnoreDifferences`).
- **`helm template ... | kubectl apply`** wants `--skip-tests`: the pod of `helm test` would run at once, and cannot be changed later.
- **`helm test`** leaves its finished pod behind for its log; the next test replaces it.
- **A GPU nobody has tried**: at every start each kernel is compared with torch on the very card, and timed against it. What fails is replaced by
  torch's own operations, slower and never wrong, and named in `internlm_engine_degraded`, with its reason in `degraded` of `GET /` and in the log:
  a kernel by its name, `overlap` (launches that overlap, Hopper and later), `race` (the timing), `flash_prefill`, `flash_decode`, `cuda_graphs` and `segments` (recorded
  steps). A kernel that ends the engine's process is left out when that is started again. The image brings the kernels
  compiled for compute capabilities 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0 (build argument `KERNEL_TARGETS`); a first start on another card, or of a model of other shapes, compiles for half a
  minute, while the weights come off the volume.
- **The hub is down**: a complete model needs no network. An incomplete one is retried until `startupBudget` is over, and goes on where it stopped.

## Eight-bit weights
`settings.quantization=int8` rounds the weights' matrices to eight bits, each row by its own scale, while they are read. The volume, the download and its digest stay the same,
and so does everything else: activations, KV cache and sums are kept as before.

| InternLM3-8B-Instruct | unset | int8 |
| --- | --- | --- |
| weights on the GPU | 16.4 GiB | 8.7 GiB |
| bytes that a decode of one request reads | 16.6 GB | 8.3 GB |
| tokens of KV cache on an otherwise empty GPU of 23.6 GiB (24 GB) | 39,808 | 202,624 |
| on one of 15.9 GiB (16 GB) | does not fit | 51,264 |
| on one of 14.6 GiB (T4, 16 GB) | does not fit | 25,664 |

A decode is bound by those bytes as long as few requests run at once. Steps of more than some thousand tokens (64 on a T4), which are prompts, widen each matrix first, and cost more than without.
`python -m tests.bench.gpu --only int8` holds both beside each other on a GPU of yours that has room for either. On a CPU int8 spares memory and is several times slower.
Answers differ a little: in this project's tests, which have a real model of 135 million parameters, the perplexity of a text grows by less than 1 %. What it costs the model that you serve,
`lm_eval` tells over `/v1/completions`, as the project's README says. `GET /` and `internlm_engine_info` say what is served.
A start that does not fit names this setting where it would, and so does `internlm-chat check`.

## Another model
With another `model.revision`, `model.repository` or `model.source`, `helm upgrade` first runs a Job that brings the new model to the volume, beside the old one, which serves
all the while. When it is whole, pods are replaced: the pause is a load, not a download. If it cannot be had, the upgrade fails, says why (`kubectl logs job/<name>-prefetch`), and
nothing has changed.
- **Time.** `helm upgrade --timeout 3600s`. Where helm gives up before, the Job goes on until `startupBudget` is over, and the next try takes up what has arrived.
- **Room.** Files that are equal, as the weights of two revisions often are, are there once. Where there is no room, what was brought earlier gives way, the oldest first, but never what is deployed
  or served, nor a directory that holds anything else; on a claim of your own (`storage.existingClaim`), and where several pods share one, nothing does. If that is not enough the Job says how much is missing: make
  `storage.size` larger in an upgrade of its own, or set `rollout.prefetch=false`.
- **Going back** downloads nothing, as long as the old one is there.
- **`rollout.prefetch=false`**: the init container brings the new model when the old pod is gone, and the download is part of the pause. So it is where there is no Job: with `helm template` and Argo CD, which
  do not see what is deployed, with `storage.perReplica`, `ReadWriteOncePod`, and a `model.path` that stays the same.
- **What the Job needs**: Secrets and ConfigMaps that it refers to are there before the upgrade. A mesh's sidecar would keep the Jobs from ending: Istio's and Linkerd's are switched off for them. And no rule of
  another pod's may keep everything of this release (`app.kubernetes.io/instance`) off its node.

## Without a connection
With `airGap=true` nothing leaves the pod (a NetworkPolicy forbids it). Images and model come another way:
1. **Chart and images.** `helm pull` the chart; copy the images `server` and `downloader` to your registry, and name that in `image.registry`.
2. **Model.** Where there is a connection, the downloader brings it, with a manifest of every file's hash (`-e INTERNLM_REVISION=<commit>` for one of your choice):
   ```sh
   mkdir -p models && docker run --rm --user 0 -v "$PWD/models:/models" -e INTERNLM_MODEL_DIR=/models/internlm3 ghcr.io/internlm-chat/downloader:{{ version }}
   ```
3. **Onto a claim.** `kubectl apply` this, with your registry; `kubectl cp models/internlm3 loader:/models/`; `kubectl delete pod loader`:
   ```yaml
   apiVersion: v1
   kind: PersistentVolumeClaim
   metadata: {name: models}
   spec:
     accessModes: [ReadWriteOnce]
     resources: {requests: {storage: 20Gi}}
   ---
   apiVersion: v1
   kind: Pod
   metadata: {name: loader}
   spec:
     nodeSelector: {nvidia.com/gpu.present: "true"} # or as your GPU nodes are labelled: many a volume stays where its first pod was
     tolerations: [{key: nvidia.com/gpu, operator: Exists}]
     securityContext: {runAsNonRoot: true, runAsUser: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
     containers:
       - name: loader
         image: registry.internal/internlm-chat/downloader:{{ version }}
         command: [sleep, infinity]
         securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
         volumeMounts: [{name: models, mountPath: /models}]
     volumes:
       - name: models
         persistentVolumeClaim: {claimName: models}
   ```
   Then `helm install` with `airGap=true`, `model.source=volume`, `storage.existingClaim=models` and `model.path=internlm3`. Before every start the init container compares what lies there with the manifest.
   **Or into an image**, in whose root the files lie: `FROM scratch` and `COPY --chmod=0755 internlm3 /` built in `models`, then `airGap=true`, `model.source=image` and `model.image` by its digest.
4. **Another model later**: the same with another directory, and `model.path` naming that; or with another image, which is pulled while the old model still serves.

## Through a proxy
An answer takes up to `requestTimeout` seconds. One that is not streamed sends nothing until it is whole; a stream sends token by token. What stands before
the service must therefore wait for `requestTimeout` + 10 s (310 s as it comes) and pass each piece on at once.

| Proxy | What it needs |
| --- | --- |
| Gateway API | The preferred way: `gateway.httpRoute.enabled=true` and `gateway.httpRoute.parentRefs`. The route's timeouts follow `requestTimeout`. They are an extended feature of the standard: see that your implementation has it, and that its listener has no shorter limit of its own (Traefik's, below). |
| ingress-nginx | `ingress.className=nginx`: the chart sets timeouts, buffering and body size. The project was retired in March 2026 and gets no fixes. |
| nginx.org (F5's) | Its class is often called `nginx`, too, and its annotations are others: `ingress.annotations` with `nginx.org/proxy-read-timeout: 310s`, `nginx.org/proxy-send-timeout: 310s`, `nginx.org/proxy-buffering: "False"`, `nginx.org/client-max-body-size: 4m`. |
| Traefik | Timeouts are the entry point's: `transport.respondingTimeouts.readTimeout`, 60 s as it comes, to `310s` or `0`. Nothing is held back. Where its provider for ingress-nginx's annotations reads the class: `ingress.nginxAnnotations=true`. |
| AWS ALB | `ingress.annotations` with `alb.ingress.kubernetes.io/load-balancer-attributes: idle_timeout.timeout_seconds=310` and `alb.ingress.kubernetes.io/target-type: ip`. |
| GKE | 30 s as it comes. Ingress: a BackendConfig with `timeoutSec: 310` (in `extraObjects`, say), named by `service.annotations` with `cloud.google.com/backend-config: '{"default": "<its name>"}'`. Gateway: a GCPBackendPolicy with `default.timeoutSec: 310`, whose `targetRef` is the Service. |
| OpenShift | 30 s as it comes: `ingress.annotations` with `haproxy.router.openshift.io/timeout: 310s`, which goes over to the Route that is made of the Ingress. |

## A GPU by a claim
Where NVIDIA's driver for dynamic resource allocation hands out GPUs, a pod claims one by a ResourceClaimTemplate of yours, which says what it must be like:

```yaml
gpu:
  claimTemplate: gpu-of-24gb
extraObjects:
  - apiVersion: resource.k8s.io/v1
    kind: ResourceClaimTemplate
    metadata: {name: gpu-of-24gb}
    spec:
      spec:
        devices:
          requests:
            - name: gpu
              exactly:
                deviceClassName: gpu.nvidia.com
                selectors:
                  - cel: {expression: "device.capacity['gpu.nvidia.com'].memory.isGreaterThan(quantity('22Gi'))"}
```

`gpu.resource` is then not asked for; each replica has a claim of its own, which goes with its pod. Kubernetes lets nobody change such a template: make one of another name. The template must ask for one GPU, or one MIG slice
(`mig.nvidia.com`): the server uses the first it finds. Claims of other devices go into `pod.extraSpec.resourceClaims` and `resources.claims`; the server's pod alone has them. Some clusters answer `nvidia.com/gpu` with a claim by themselves; those need none of this.

## A GPU that several pods share
Where GPUs are divided in time or by MPS, the server need not hold the memory while nobody asks: with `settings.sleepAfter=900` the engine's process ends
after a quarter of an hour without a request, and with it all that it held of the GPU. The pod stays ready, `GET /` says "engine asleep", and the next request starts
the engine again and waits for it: for about as long as `internlm_startup_seconds` of a start, in all, so let `requestTimeout` be longer. If the memory is somebody
else's by then, the engine waits a minute for it; then the pod is not ready and says why, tries again, and after five tries fails and is started anew. Set `settings.gpuMemoryFraction` to the share that is yours.

## Behind an endpoint picker
`gateway.inferencePool.enabled=true` makes an InferencePool over the pods; the picker (Gateway API inference extension, llm-d) is yours to install, and
must be told three things:
- **Which parser.** The reference picker takes bodies for OpenAI's and refuses those without `model`, as those of `/v1/chat` are. The `passthrough-parser`
  serves every route: it reads no body, so whatever scores by a prompt (prefix caches) has nothing to go by. Where all clients use `/v1/chat/completions` and
  name the model, the picker's own parser does.
- **Which port.** Metrics are on 6007, not on the pool's target port: `--model-server-metrics-port=6007`. With a NetworkPolicy, the picker belongs into
  `networkPolicy.allowMetricsFrom` and the gateway into `allowFrom`.
- **Which metrics.** `internlm_num_requests_waiting` and `internlm_num_requests_running`. There is none for the share of the KV cache in use, for LoRA, or for the
  cache's layout: leave those empty, and score by the queue.

```yaml
apiVersion: llm-d.ai/v1alpha1  # inference.networking.x-k8s.io/v1alpha1 in earlier releases, whose plugins have other names
kind: EndpointPickerConfig
plugins:
  - type: passthrough-parser
  - type: queue-scorer
  - type: metrics-data-source
  - type: core-metrics-extractor
    parameters:
      defaultEngine: internlm-chat
      engineConfigs:
        - name: internlm-chat
          queuedRequestsSpec: internlm_num_requests_waiting
          runningRequestsSpec: internlm_num_requests_running
requestHandler:
  parsers:
    - pluginRef: passthrough-parser
dataLayer:
  sources:
    - pluginRef: metrics-data-source
      extractors:
        - pluginRef: core-metrics-extractor
schedulingProfiles:
  - name: default
    plugins:
      - pluginRef: queue-scorer
```

This is written after the picker's sources and has not been run against one. Where all you want is that requests are spread, the HTTPRoute leads to the Service
without a pool, and the server's own queue answers 429 when it is full.

## When an alert fires
`monitoring.rules=true` makes these, of severity `critical` where answers are lost, else `warning`; `monitoring.alertLabels` adds what your Alertmanager
routes by. Each names its section here, by an address where `monitoring.runbookUrl` gives one. In what follows, `<pod>` is the pod the alert names,
or one that `kubectl get pods -l app.kubernetes.io/component=server` shows, and `GET /` is asked of it by `kubectl port-forward <pod> 6006`.

### InternlmChatDown
Nothing of the release can be scraped. `kubectl describe pod <pod>`: Pending means no free GPU, an untolerated taint or an unbound claim; Init means it
downloads (`kubectl logs <pod> -c download`); CrashLoopBackOff has its reason in the last state's message. No pod at all: look at the Deployment's or
StatefulSet's events. Pods that run and are not scraped: look at the monitor's labels and at `networkPolicy.allowMetricsFrom`.

### InternlmChatNotReady
Nothing has answered for `startupBudget` seconds. `GET /` names the phase and its reason. A download that is merely slow wants a larger
`startupBudget`; one that fails says why in its last line. A load that fails for want of memory wants a larger GPU, or one that nothing else uses.

### InternlmChatLostReady
The model answered, and does not any more, though the server runs. `GET /` says "draining" (it was told to stop: by a rollout, a node's drain, an
eviction), "loading" (the engine was started again: see InternlmChatEngineRestarting) or "failed" with the reason. A new pod that still loads is not meant: let it, as
long as the phase it names goes on. Else `kubectl delete pod <pod>` starts a new one; where that fails as well, look at the GPU (`nvidia-smi` and Xid errors in
the node's kernel log).

### InternlmChatReplicaMissing
Fewer pods answer than `replicas`, or `autoscaling.minReplicas`, for `startupBudget` seconds; the others carry what they would take on. `kubectl get pods`: Pending and
ContainerCreating have their reason in `kubectl describe pod` ("Multi-Attach error" is a volume that a lost node still holds: `kubectl delete pod --force` of the pod there, once
that node is really gone); one that runs and is not ready says why in `GET /`. None where there is to be one: look at the events of the ReplicaSet or StatefulSet.

### InternlmChatModelsDiffer
Pods have had different models for longer than replacing all of them may take (`startupBudget` for each). `internlm_model_info` says which pod has which revision and manifest. With
`storage.perReplica` and no `model.revision` each downloaded what the branch had on its day: name a commit in `model.revision`. Else an upgrade is stuck half way: `kubectl rollout status` says where.

### InternlmChatServerRestarting
The server's process dies again and again; every answer it was giving is cut off. `kubectl describe pod <pod>`: OOMKilled wants a larger
`resources.limits.memory`, a failed liveness probe names what hangs. If the container stays and only its worker goes, `kubectl logs <pod>` says what ended it.

### InternlmChatFailing
Answers end past the deadline (504) or in an error. Compare `internlm_requests_total` by outcome. `deadline` beside a long queue is too much load: add
replicas, or lower `settings.maxQueue` so that clients learn it at once. `deadline` without a queue is answers too long for `requestTimeout`, or an engine that
has become slow: see InternlmChatDegraded. The 504 itself and the request's line in the server's log say where its time went. `error` has its reason there.

### InternlmChatDecodeStalled
Requests run and no token comes. Liveness restarts the pod when a step hangs; if the alert stays, look at the GPU: `nvidia-smi` in the pod, Xid errors in the
node's kernel log, another process on the same card. `kubectl delete pod <pod>` moves on; cordon the node if it comes back there.

### InternlmChatRejecting
The queue is full and clients get 429 with `Retry-After`. Add replicas (`replicas` or `autoscaling`) or GPUs; raise `settings.maxQueue` only where longer
waits are welcome. A single client that floods is seen in the proxy's log.

### InternlmChatEngineRestarting
The engine's process dies and is started again in place. The reason of each death is in `kubectl logs <pod>`. Out of memory on the GPU: lower
`settings.gpuMemoryFraction` or `settings.maxRunning`. An Xid error: the card or its driver.

### InternlmChatQueueing
Requests wait long before their answer begins. The same remedies as for InternlmChatRejecting; shorter answers (`max_new_tokens` of the clients) help
as well, and so does a faster path that is switched off: see InternlmChatDegraded.

### InternlmChatDegraded
A fast path was left out at the start, and a slower one that is never wrong took its place. `degraded` of `GET /` says why. One that failed its comparison on
a card that had passed it is a sign of a failing card or of a driver that was changed. On a card nobody has tried it can stay so: silence the alert for that path.

## Security
Both containers run as user 10001 with a read-only root, no capabilities, seccomp and no service account token: the namespace can enforce the
`restricted` Pod Security standard. Secrets are mounted as files by reference; none appears in a manifest, or in the environment unless `extraEnvFrom` brings one. Metrics have a port
and a Service of their own, which no Ingress leads to.

## Values
{{ values }}

## Server settings
Every other setting of the server, under `settings`. Unknown names and values out of bounds are refused by the chart's schema.

{{ settings }}
