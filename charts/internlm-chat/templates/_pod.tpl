{{/* The pod, the same under a Deployment and a StatefulSet. */}}
{{- define "chat.pod" -}}
metadata:
  {{- with merge (include "chat.podAnnotations" . | fromYaml) (.Values.pod.annotations | default dict) }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
  labels: {{- toYaml (merge (include "chat.podSelectorLabels" . | fromYaml) (.Values.pod.labels | default dict) (.Values.commonLabels | default dict)) | nindent 4 }}
spec:
  serviceAccountName: {{ include "chat.serviceAccountName" . | quote }}
  automountServiceAccountToken: false
  # A Service called internlm would otherwise put INTERNLM_PORT=tcp://... into the environment.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "chat.gracePeriod" . }}
  securityContext: {{- toYaml .Values.pod.securityContext | nindent 4 }}
  {{- if include "chat.model.onClaim" . }}
  {{- $release := list }}
  {{- if include "chat.model.fromHub" . }}
  {{- /* Not there any more, for a rollout that is undone from a model of another source: then nothing gives way. */}}
  {{- $release = list (dict "configMapRef" (dict "name" (include "chat.fullname" .) "optional" true)) }}
  {{- end }}
  initContainers:
    - {{- include "chat.downloadContainer" (list . (include "chat.settings" .) $release) | nindent 6 }}
  {{- end }}
  containers:
    - {{- include "chat.serverContainer" . | nindent 6 }}
  volumes: {{- include "chat.volumes" . | nindent 4 }}
  {{- include "chat.placement" (list . (include "chat.gpuPlacement" . | fromYaml)) | nindent 2 }}
  {{- with include "chat.resourceClaims" . | fromYamlArray }}
  resourceClaims: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.pod.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "chat.podAnnotations" -}}
{{- if eq .Values.monitoring.scrape "annotations" }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ include "chat.ports.metrics" . | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end }}

{{- define "chat.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* "true" where the old pod is gone before the new one starts. */}}
{{- define "chat.recreates" -}}
{{- and (not .Values.rollout.surge) (eq (include "chat.mostReplicas" . | int) 1) }}
{{- end }}

{{/* What a GPU adds to where a pod may run, in mode gpu. */}}
{{- define "chat.gpuPlacement" -}}
{{- if eq .Values.mode "gpu" }}
{{- toYaml (pick (.Values.gpu | default dict) "runtimeClassName" "tolerations" "nodeSelector") }}
{{- end }}
{{- end }}

{{/* YAML of the devices that the server's pod claims, and no other: one that it holds would keep a Job waiting for ever. */}}
{{- define "chat.resourceClaims" -}}
{{- $claims := (.Values.pod.extraSpec | default dict).resourceClaims | default list }}
{{- if eq .Values.mode "gpu" }}
{{- with .Values.gpu.claimTemplate }}
{{- $claims = prepend $claims (dict "name" (include "chat.gpuClaim" .) "resourceClaimTemplateName" .) }}
{{- end }}
{{- end }}
{{- toYaml $claims }}
{{- end }}

{{/* By which name container and pod know the claim: one that no claim of an operator's own is likely to have. */}}
{{- define "chat.gpuClaim" -}}server-gpu{{- end }}

{{/* What stands for one GPU, in words. */}}
{{- define "chat.gpuTitle" -}}
{{- with .Values.gpu.claimTemplate }}GPU by the claim template {{ . }}{{ else }}{{ .Values.gpu.resource }}{{ end }}
{{- end }}

{{/* Where a pod may run and what it may pull: `(list . gpu)`, in which `gpu` is what a GPU adds to it. The images are for one kind of processor. */}}
{{- define "chat.placement" -}}
{{- $values := (index . 0).Values }}
{{- $gpu := index . 1 }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $gpu.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with $values.pod.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
nodeSelector: {{- toYaml (merge (dict) ($values.pod.nodeSelector | default dict) ($gpu.nodeSelector | default dict) (dict "kubernetes.io/arch" "amd64")) | nindent 2 }}
{{- with concat ($gpu.tolerations | default list) ($values.pod.tolerations | default list) }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.pod.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with omit ($values.pod.extraSpec | default dict) "resourceClaims" }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "chat.scratchVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
# HOME and every cache: compiled kernels, converted models.
- name: cache
  emptyDir: {sizeLimit: 8Gi}
{{- end }}

{{- define "chat.volumes" -}}
{{ include "chat.scratchVolumes" . }}
{{- if and (include "chat.model.onClaim" .) (not .Values.storage.perReplica) }}
- name: model
  persistentVolumeClaim:
    claimName: {{ include "chat.claimName" . | quote }}
    {{- if eq .Values.storage.accessMode "ReadOnlyMany" }}
    readOnly: true
    {{- end }}
{{- end }}
{{- if eq (include "chat.model.source" .) "image" }}
{{ include "chat.modelImageVolume" . }}
{{- end }}
{{- if and (include "chat.model.fromHub" .) .Values.model.tokenSecret.name }}
- name: hub-token
  secret: {{- include "chat.secretKey" (list .Values.model.tokenSecret.name .Values.model.tokenSecret.key) | nindent 4 }}
{{- end }}
{{- if .Values.apiKeys.secretName }}
- name: api-keys
  secret: {{- include "chat.secretKey" (list .Values.apiKeys.secretName .Values.apiKeys.key) | nindent 4 }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "chat.modelImageVolume" -}}
- name: model
  image:
    reference: {{ .Values.model.image | quote }}
    pullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* One key of a Secret as a file, and nothing else that may be in it; a key that is missing is named in the pod's events. */}}
{{- define "chat.secretKey" -}}
secretName: {{ index . 0 | quote }}
items:
  - {key: {{ index . 1 | quote }}, path: {{ index . 1 | quote }}}
{{- end }}
