{{/* The pod, the same under a Deployment and a StatefulSet. */}}
{{- define "chat.pod" -}}
metadata:
  annotations:
    checksum/config: {{ include "chat.settings" . | sha256sum }}
    {{- if eq .Values.monitoring.scrape "annotations" }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ include "chat.ports.metrics" . | quote }}
    prometheus.io/path: /metrics
    {{- end }}
    {{- with .Values.pod.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "chat.podSelectorLabels" . | nindent 4 }}
    {{- with merge (dict) .Values.pod.labels .Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "chat.serviceAccountName" . }}
  automountServiceAccountToken: false
  # A Service called internlm would otherwise put INTERNLM_PORT=tcp://... into the environment.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "chat.gracePeriod" . }}
  securityContext: {{- toYaml .Values.pod.securityContext | nindent 4 }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- if include "chat.model.onClaim" . }}
  initContainers:
    - {{- include "chat.downloadContainer" . | nindent 6 }}
  {{- end }}
  containers:
    - {{- include "chat.serverContainer" . | nindent 6 }}
  volumes: {{- include "chat.volumes" . | nindent 4 }}
  {{- include "chat.placement" . | nindent 2 }}
{{- end }}

{{- define "chat.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "chat.placement" -}}
{{- $gpu := ternary .Values.gpu (dict) (eq .Values.mode "gpu") }}
{{- with $gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with merge (dict) .Values.pod.nodeSelector ($gpu.nodeSelector | default dict) }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat ($gpu.tolerations | default list) .Values.pod.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pod.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pod.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "chat.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
# HOME and every cache: compiled kernels, converted models.
- name: cache
  emptyDir: {sizeLimit: 8Gi}
{{- if and (include "chat.model.onClaim" .) (not .Values.storage.perReplica) }}
- name: model
  persistentVolumeClaim:
    claimName: {{ include "chat.claimName" . }}
{{- end }}
{{- if eq (include "chat.model.source" .) "image" }}
- name: model
  image:
    reference: {{ .Values.model.image }}
    pullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}
{{- if and (include "chat.model.fromHub" .) .Values.model.tokenSecret.name }}
- name: hub-token
  secret:
    secretName: {{ .Values.model.tokenSecret.name }}
{{- end }}
{{- if .Values.apiKeys.secretName }}
- name: api-keys
  secret:
    secretName: {{ .Values.apiKeys.secretName }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
