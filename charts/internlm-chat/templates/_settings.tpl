{{/*
Every setting of server and init container; secrets are files, of which only the paths are here. What changes among them replaces the pods.
*/}}
{{- define "chat.settings" -}}
INTERNLM_PORT: {{ include "chat.ports.api" . | quote }}
INTERNLM_METRICS_PORT: {{ include "chat.ports.metrics" . | quote }}
INTERNLM_DEVICE: {{ ternary "cuda" "cpu" (eq .Values.mode "gpu") }}
INTERNLM_REQUEST_TIMEOUT: {{ .Values.requestTimeout | quote }}
INTERNLM_DRAIN_DELAY: {{ include "chat.drainDelay" . | quote }}
{{- with include "chat.model.dir" . }}
INTERNLM_MODEL_DIR: {{ . | quote }}
{{- end }}
{{- with include "chat.model.name" . }}
INTERNLM_MODEL_ID: {{ . | quote }}
{{- end }}
{{- if include "chat.model.onClaim" . }}
INTERNLM_SOURCE: {{ include "chat.model.source" . | replace "volume" "dir" }}
INTERNLM_DOWNLOAD_BUDGET: {{ .Values.startupBudget | quote }}
{{- end }}
{{- if include "chat.model.fromHub" . }}
INTERNLM_MODEL_REPO: {{ include "chat.model.repository" . | quote }}
INTERNLM_REVISION: {{ include "chat.model.revision" . | quote }}
{{- with .Values.model.endpoint }}
INTERNLM_HUB_ENDPOINT: {{ . | quote }}
{{- end }}
{{- if .Values.model.tokenSecret.name }}
INTERNLM_HUB_TOKEN_FILE: {{ printf "/etc/internlm-chat/hub/%s" .Values.model.tokenSecret.key | quote }}
{{- end }}
{{- end }}
{{- if .Values.apiKeys.secretName }}
INTERNLM_API_KEYS_FILE: {{ printf "/etc/internlm-chat/api/%s" .Values.apiKeys.key | quote }}
{{- end }}
{{- range $name, $value := .Values.settings }}
INTERNLM_{{ $name | snakecase | upper }}: {{ include "chat.settingValue" $value | quote }}
{{- end }}
{{- if not (hasKey (.Values.settings | default dict) "logFormat") }}
INTERNLM_LOG_FORMAT: json
{{- end }}
{{- end }}

{{/* What a download is told of the release as it is now: it changes with the number of replicas, for which no pod is replaced. */}}
{{- define "chat.releaseSettings" -}}
INTERNLM_DOWNLOAD_MAKE_ROOM: {{ include "chat.mayMakeRoom" . | quote }}
{{- end }}

{{/* Helm reads numbers as floats and prints large ones as 1e+06. */}}
{{- define "chat.settingValue" -}}
{{- if and (kindIs "float64" .) (eq (float64 .) (floor .)) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}
{{- end }}
