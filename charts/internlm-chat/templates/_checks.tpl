{{/*
Combinations that pass the schema and still cannot work. Each fails with one sentence that names the values and the way out.
*/}}
{{- define "chat.checks" -}}
{{- include "chat.checks.names" . }}
{{- include "chat.checks.model" . }}
{{- include "chat.checks.storage" . }}
{{- include "chat.checks.deployedClaims" . }}
{{- include "chat.checks.times" . }}
{{- include "chat.checks.scaling" . }}
{{- include "chat.checks.engine" . }}
{{- include "chat.checks.traffic" . }}
{{- include "chat.checks.environment" . }}
{{- include "chat.checks.pod" . }}
{{- end }}

{{- define "chat.checks.names" -}}
{{- $name := include "chat.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "%q cannot name a Service: it takes lower-case letters, digits and hyphens, a letter first. Set fullnameOverride, or another release name." $name) }}
{{- end }}
{{- if not (regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$" (include "chat.name" .)) }}
{{- fail (printf "nameOverride=%q is no label: it takes letters, digits and, between them, hyphens, dots and underscores." .Values.nameOverride) }}
{{- end }}
{{- $own := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" }}
{{- range $where, $labels := dict "commonLabels" .Values.commonLabels "pod.labels" .Values.pod.labels "monitoring.labels" .Values.monitoring.labels }}
{{- range $label, $_ := $labels }}
{{- if has $label $own }}
{{- fail (printf "%s may not set %s: the chart finds its own objects by it. Use a label of another name." $where $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "chat.checks.model" -}}
{{- $source := include "chat.model.source" . }}
{{- if and (eq $source "volume") .Values.storage.perReplica }}
{{- fail "model.source=volume serves one claim that exists: name it in storage.existingClaim and leave storage.perReplica false." }}
{{- end }}
{{- if and (eq .Values.mode "gpu") (eq $source "builtin") }}
{{- fail "model.source=builtin is the small model of the CPU image: set mode=cpu, or take the model from modelscope, huggingface, volume or image." }}
{{- end }}
{{- if and (eq .Values.mode "cpu") (include "chat.model.fromHub" .) (not .Values.model.repository) }}
{{- fail (printf "mode=cpu with model.source=%s would load the 8B model on a CPU (35 GB of memory, seconds per token): name a small one in model.repository, or leave model.source empty for the built-in one." $source) }}
{{- end }}
{{- if and (eq $source "volume") (not .Values.storage.existingClaim) }}
{{- fail "model.source=volume serves what is already on a volume: name its claim in storage.existingClaim." }}
{{- end }}
{{- if and (eq $source "image") (not .Values.model.image) }}
{{- fail "model.source=image needs model.image, the OCI image that holds the model's files." }}
{{- end }}
{{- if and (eq $source "image") (semverCompare "<1.33-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "model.source=image needs image volumes, which Kubernetes has from 1.33 on, and without the feature gate ImageVolume from 1.35; this cluster is %s. Use modelscope, huggingface or volume." .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if and .Values.airGap .Values.networkPolicy.extraEgress }}
{{- fail "airGap=true forbids all egress, and networkPolicy.extraEgress allows some: set networkPolicy.enabled=true instead of airGap, or leave it out." }}
{{- end }}
{{- if and .Values.airGap (include "chat.model.fromHub" .) }}
{{- fail (printf "airGap=true forbids all egress, so model.source=%s cannot fetch anything: use volume with storage.existingClaim, image, or builtin." $source) }}
{{- end }}
{{- end }}

{{- define "chat.checks.storage" -}}
{{- $storage := .Values.storage }}
{{- $size := include "chat.model.size" . }}
{{- if and (include "chat.model.fromHub" .) (not $storage.existingClaim) $size }}
{{- if lt (include "chat.amount" $storage.size | float64) (include "chat.amount" $size | float64) }}
{{- fail (printf "storage.size=%s is smaller than the model, which takes %s (model.size): raise storage.size." $storage.size $size) }}
{{- end }}
{{- end }}
{{- if and (include "chat.model.fromHub" .) (eq $storage.accessMode "ReadOnlyMany") }}
{{- fail (printf "storage.accessMode=ReadOnlyMany cannot take a download: use ReadWriteOnce or ReadWriteMany, or model.source=volume instead of %s." (include "chat.model.source" .)) }}
{{- end }}
{{- if and $storage.perReplica $storage.existingClaim }}
{{- fail "storage.perReplica makes a claim for each replica, so storage.existingClaim must be empty." }}
{{- end }}
{{- $single := and (include "chat.model.onClaim" .) (not $storage.perReplica) (hasPrefix "ReadWriteOnce" $storage.accessMode) }}
{{- if and $single (gt (include "chat.mostReplicas" . | int) 1) }}
{{- fail (printf "%s replicas cannot share one %s volume: set storage.accessMode=ReadWriteMany (and a storage class that has it), or storage.perReplica=true." (include "chat.mostReplicas" .) $storage.accessMode) }}
{{- end }}
{{- if and .Values.rollout.surge $single }}
{{- fail (printf "rollout.surge starts the new pod beside the old one, which cannot share a %s volume: set storage.accessMode=ReadWriteMany, or rollout.surge=false." $storage.accessMode) }}
{{- end }}
{{- if and .Values.rollout.surge $storage.perReplica }}
{{- fail "rollout.surge and storage.perReplica exclude each other: a StatefulSet replaces its pods one by one." }}
{{- end }}
{{- end }}

{{- define "chat.checks.deployedClaims" -}}
{{- $deployed := include "chat.deployed" . | fromYaml }}
{{- if and .Values.storage.perReplica $deployed }}
{{- $has := dig "spec" "volumeClaimTemplates" list $deployed | empty | not }}
{{- if ne $has (ne (include "chat.model.onClaim" .) "") }}
{{- $name := include "chat.fullname" . }}
{{- fail (printf "model.source=%s with storage.perReplica makes %s claims, and Kubernetes lets no StatefulSet change that: `kubectl -n %s delete statefulset %s --cascade=orphan`, which leaves its pods alone, then upgrade." (include "chat.model.source" .) (ternary "no" "" $has | default "its own") .Release.Namespace $name) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "chat.checks.times" -}}
{{- if le (include "chat.gracePeriod" . | int) (include "chat.drainSeconds" . | int) }}
{{- fail (printf "rollout.gracePeriod=%v would kill running answers: draining takes %s s (rollout.preStopDelay + %s + requestTimeout). Leave it 0, or set more than that." .Values.rollout.gracePeriod (include "chat.drainSeconds" .) (include "chat.drainDelay" .)) }}
{{- end }}
{{- end }}

{{- define "chat.checks.scaling" -}}
{{- $scaling := .Values.autoscaling }}
{{- if and (ne $scaling.kind "none") (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas=%v is more than autoscaling.maxReplicas=%v." $scaling.minReplicas $scaling.maxReplicas) }}
{{- end }}
{{- if and (eq $scaling.kind "keda") (not $scaling.prometheusAddress) }}
{{- fail "autoscaling.kind=keda asks Prometheus how many requests wait: set autoscaling.prometheusAddress." }}
{{- end }}
{{- if and (ne $scaling.kind "none") (eq .Values.monitoring.scrape "none") }}
{{- fail (printf "autoscaling.kind=%s goes by internlm_num_requests_waiting in Prometheus, and nothing brings it there: set monitoring.scrape to serviceMonitor or podMonitor, or to annotations where something of your own scrapes the pods." $scaling.kind) }}
{{- end }}
{{- if and .Values.pdb.enabled (eq (include "chat.mostReplicas" . | int) 1) }}
{{- fail "pdb.enabled with one replica protects nothing or blocks every node drain: a stopping pod finishes its answers without it. Set replicas or autoscaling, or pdb.enabled=false." }}
{{- end }}
{{- end }}

{{- define "chat.checks.engine" -}}
{{- $settings := .Values.settings | default dict }}
{{- $engine := $settings.engine | default "native" }}
{{- if and (ne $engine "native") (ne ($settings.quantization | default "none") "none") }}
{{- fail (printf "settings.quantization=%s is the native engine's: leave it out, or set settings.engine=native instead of %s." $settings.quantization $engine) }}
{{- end }}
{{- end }}

{{- define "chat.checks.traffic" -}}
{{- if and .Values.gateway.httpRoute.enabled (not .Values.gateway.httpRoute.parentRefs) }}
{{- fail "gateway.httpRoute.enabled needs gateway.httpRoute.parentRefs, the gateways that are to serve the route." }}
{{- end }}
{{- if and .Values.gateway.inferencePool.enabled (not .Values.gateway.inferencePool.endpointPicker.name) }}
{{- fail "gateway.inferencePool.enabled needs gateway.inferencePool.endpointPicker.name, the picker's Service." }}
{{- end }}
{{- if and .Values.monitoring.rules (not (has .Values.monitoring.scrape (list "serviceMonitor" "podMonitor"))) }}
{{- fail "monitoring.rules needs monitoring.scrape=serviceMonitor or podMonitor: the alerts find their series by the job label that those set." }}
{{- end }}
{{- $host := (.Values.settings | default dict).host | default "" }}
{{- if or (hasPrefix "127." $host) (has $host (list "localhost" "::1")) }}
{{- fail (printf "settings.host=%s listens inside the pod alone, and neither probes nor the Service would reach it: leave it out, or set \"::\" for both families." $host) }}
{{- end }}
{{- $ipv6 := or (has "IPv6" (.Values.service.ipFamilies | default list)) (has (.Values.service.ipFamilyPolicy | default "") (list "PreferDualStack" "RequireDualStack")) }}
{{- if and $ipv6 (not (contains ":" ((.Values.settings | default dict).host | default "0.0.0.0"))) }}
{{- fail "service.ipFamilies or service.ipFamilyPolicy asks for IPv6, on which the server would not listen: set settings.host=\"::\", which is both families." }}
{{- end }}
{{- range $name := list "loadBalancerClass" "loadBalancerSourceRanges" }}
{{- if and (get $.Values.service $name) (ne $.Values.service.type "LoadBalancer") }}
{{- fail (printf "service.%s needs service.type=LoadBalancer, not %s." $name $.Values.service.type) }}
{{- end }}
{{- end }}
{{- if and .Values.service.nodePort (ne .Values.service.type "NodePort") }}
{{- fail (printf "service.nodePort=%v needs service.type=NodePort, not %s." .Values.service.nodePort .Values.service.type) }}
{{- end }}
{{- end }}

{{/* The server's settings by their environment variables: each has its place among the values. */}}
{{- define "chat.checks.environment" -}}
{{- $decided := dict
  "API_KEYS_FILE" "apiKeys.secretName"
  "CACHE_DIR" ""
  "DEVICE" "mode"
  "DOWNLOAD_BUDGET" "startupBudget"
  "DOWNLOAD_KEEP" ""
  "DOWNLOAD_MAKE_ROOM" ""
  "DRAIN_DELAY" "rollout.preStopDelay"
  "HUB_ENDPOINT" "model.endpoint"
  "HUB_TOKEN_FILE" "model.tokenSecret.name"
  "METRICS_PORT" ""
  "MODEL_DIR" "model.path"
  "MODEL_ID" "model.name"
  "MODEL_REPO" "model.repository"
  "PORT" "service.port"
  "REQUEST_TIMEOUT" "requestTimeout"
  "REVISION" "model.revision"
  "RUN_DIR" ""
  "SOURCE" "model.source"
  "TERMINATION_LOG" ""
}}
{{- range .Values.extraEnv }}
{{- if hasPrefix "INTERNLM_" .name }}
{{- $name := trimPrefix "INTERNLM_" .name }}
{{- if not (hasKey $decided $name) }}
{{- fail (printf "extraEnv sets %s, which is a setting of the server: set settings.%s instead." .name (lower $name | camelcase | untitle)) }}
{{- else if get $decided $name }}
{{- fail (printf "extraEnv sets %s, which another value decides: set %s instead." .name (get $decided $name)) }}
{{- else }}
{{- fail (printf "extraEnv sets %s, which the chart decides by itself: leave it out." .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "chat.checks.pod" -}}
{{- $volumes := list "tmp" "cache" "model" "hub-token" "api-keys" }}
{{- range .Values.extraVolumes }}
{{- if has .name $volumes }}
{{- fail (printf "extraVolumes names a volume %s, which is one of the chart's own (%s): take another name." .name (join ", " $volumes)) }}
{{- end }}
{{- end }}
{{- $paths := list "/tmp" "/cache" (include "chat.model.mountPath" .) "/etc/internlm-chat/hub" "/etc/internlm-chat/api" }}
{{- range .Values.extraVolumeMounts }}
{{- if has (.mountPath | trimSuffix "/") $paths }}
{{- fail (printf "extraVolumeMounts has %s, where the chart mounts a volume of its own: take another path, below it if need be." .mountPath) }}
{{- end }}
{{- end }}
{{- if and (eq .Values.mode "gpu") .Values.gpu.claimTemplate (semverCompare "<1.34-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "gpu.claimTemplate needs dynamic resource allocation, which Kubernetes has from 1.34 on (an earlier one may drop a claim without a word); this cluster is %s. Use gpu.resource." .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- $own := list "activeDeadlineSeconds" "affinity" "automountServiceAccountToken" "containers" "enableServiceLinks" "imagePullSecrets" "initContainers" "nodeSelector" "priorityClassName" "restartPolicy" "runtimeClassName" "securityContext" "serviceAccount" "serviceAccountName" "terminationGracePeriodSeconds" "tolerations" "topologySpreadConstraints" "volumes" }}
{{- range $field, $_ := .Values.pod.extraSpec }}
{{- if has $field $own }}
{{- fail (printf "pod.extraSpec may not set %s: the chart sets it, from values of its own in pod, gpu, image, serviceAccount, rollout and extraVolumes." $field) }}
{{- end }}
{{- end }}
{{- end }}

{{/* As many replicas as there can ever be. */}}
{{- define "chat.mostReplicas" -}}
{{- ternary .Values.replicas .Values.autoscaling.maxReplicas (eq .Values.autoscaling.kind "none") }}
{{- end }}
