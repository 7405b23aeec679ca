{{/* The init container that brings the model, and the server. */}}

{{- define "chat.downloadContainer" -}}
name: download
image: {{ include "chat.downloaderImage" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [download]
{{- include "chat.environment" . | nindent 0 }}
# The cause of a failed download, in `kubectl describe pod`.
terminationMessagePolicy: FallbackToLogsOnError
resources:
  requests: {cpu: 100m, memory: 256Mi}
  # The page cache of what is written counts too; the kernel takes it back before it kills.
  limits: {memory: 1Gi}
securityContext: {{- include "chat.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  {{- include "chat.scratchMounts" . | nindent 2 }}
  - name: model
    mountPath: {{ include "chat.model.mountPath" . }}
    {{- if eq .Values.storage.accessMode "ReadOnlyMany" }}
    readOnly: true
    {{- end }}
  {{- if and (include "chat.model.fromHub" .) .Values.model.tokenSecret.name }}
  - name: hub-token
    mountPath: /etc/internlm-chat/hub
    readOnly: true
  {{- end }}
{{- end }}

{{- define "chat.serverContainer" -}}
name: server
image: {{ include "chat.serverImage" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- include "chat.environment" . | nindent 0 }}
ports:
  - {name: http, containerPort: {{ include "chat.ports.api" . }}, protocol: TCP}
  - {name: metrics, containerPort: {{ include "chat.ports.metrics" . }}, protocol: TCP}
{{- include "chat.probes" . | nindent 0 }}
lifecycle:
  preStop:
    exec:
      command: [sleep, {{ .Values.rollout.preStopDelay | quote }}]
terminationMessagePolicy: FallbackToLogsOnError
resources: {{- include "chat.serverResources" . | nindent 2 }}
securityContext: {{- include "chat.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  {{- include "chat.scratchMounts" . | nindent 2 }}
  {{- if include "chat.model.dir" . }}
  - name: model
    mountPath: {{ include "chat.model.mountPath" . }}
    readOnly: true
  {{- end }}
  {{- if .Values.apiKeys.secretName }}
  - name: api-keys
    mountPath: /etc/internlm-chat/api
    readOnly: true
  {{- end }}
{{- end }}

{{- define "chat.environment" -}}
envFrom:
  - configMapRef:
      name: {{ include "chat.fullname" . }}
{{- with .Values.extraEnv }}
env: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "chat.scratchMounts" -}}
- name: tmp
  mountPath: /tmp
- name: cache
  mountPath: /cache
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Three probes, three questions: has it come up in time, may it get requests, is it beyond repair. */}}
{{- define "chat.probes" -}}
startupProbe:
  httpGet: {path: /, port: http}
  periodSeconds: {{ include "chat.startupProbePeriod" . }}
  failureThreshold: {{ include "chat.startupProbeFailures" . }}
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /, port: http}
  periodSeconds: 5
  failureThreshold: 2
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  failureThreshold: 3
  timeoutSeconds: 5
{{- end }}

{{- define "chat.serverResources" -}}
{{- $gpu := eq .Values.mode "gpu" }}
{{- $requests := ternary (dict "cpu" "4" "memory" "16Gi") (dict "cpu" "1" "memory" "2Gi") $gpu }}
{{- $default := dict "requests" $requests "limits" (dict "memory" (ternary "32Gi" "4Gi" $gpu)) }}
{{- $resources := deepCopy (.Values.resources | default $default) }}
{{- if $gpu }}
{{- $limits := merge (dict .Values.gpu.resource 1) ($resources.limits | default dict) }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- toYaml $resources }}
{{- end }}
