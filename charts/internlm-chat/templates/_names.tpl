{{/* Names, labels and images. Selectors hold name and instance only: they can never change. */}}

{{- define "chat.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "chat.fullname" -}}
{{- $name := include "chat.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "chat.selectorLabels" -}}
app.kubernetes.io/name: {{ include "chat.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels and annotations, those that every object has and some of its own: `(list . labels annotations)`. */}}
{{- define "chat.metadata" -}}
{{- $root := index . 0 -}}
labels: {{- include "chat.labelsWith" (list $root (index . 1)) | nindent 2 }}
{{- with merge (dict) (index . 2 | default dict) ($root.Values.commonAnnotations | default dict) }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The labels of `chat.metadata`. Each is said once, whoever says it twice. */}}
{{- define "chat.labelsWith" -}}
{{- $root := index . 0 }}
{{- $chart := printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- $about := dict "helm.sh/chart" $chart "app.kubernetes.io/version" ($root.Chart.AppVersion | replace "+" "_") "app.kubernetes.io/managed-by" $root.Release.Service }}
{{- toYaml (merge (include "chat.selectorLabels" $root | fromYaml) $about (index . 1) ($root.Values.commonLabels | default dict)) }}
{{- end }}

{{/* Labels of what serves, as against the test pod, which carries the release's labels too. */}}
{{- define "chat.podSelectorLabels" -}}
{{ include "chat.selectorLabels" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "chat.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "chat.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "chat.serverImage" -}}
{{- $name := .Values.image.server.name | default (ternary "server" "server-cpu" (eq .Values.mode "gpu")) }}
{{- include "chat.image" (dict "root" . "name" $name "digest" .Values.image.server.digest) }}
{{- end }}

{{- define "chat.downloaderImage" -}}
{{- include "chat.image" (dict "root" . "name" .Values.image.downloader.name "digest" .Values.image.downloader.digest) }}
{{- end }}

{{- define "chat.image" -}}
{{- $image := printf "%s/%s" .root.Values.image.registry .name }}
{{- if .digest }}
{{- printf "%s@%s" $image .digest }}
{{- else }}
{{- printf "%s:%s" $image (.root.Values.image.tag | default .root.Chart.AppVersion | replace "+" "_") }}
{{- end }}
{{- end }}
