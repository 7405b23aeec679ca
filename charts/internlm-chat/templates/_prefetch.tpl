{{/* The Job that brings another model before an upgrade to it: when there is one, what it is told, where it runs. */}}

{{/*
"true" where an upgrade changes the model's directory on a claim that is there. Whoever renders without a cluster (`helm template`, Argo CD)
cannot know that, and gets no Job. An existing claim is taken to exist: looking at it would take a right that helm needs for nothing else.
*/}}
{{- define "chat.prefetches" -}}
{{- $shared := and (not .Values.storage.perReplica) (has .Values.storage.accessMode (list "ReadWriteOnce" "ReadWriteMany")) }}
{{- if and .Release.IsUpgrade .Values.rollout.prefetch (include "chat.model.fromHub" .) $shared }}
{{- $directory := include "chat.prefetch.served" . }}
{{- if and $directory (ne $directory (include "chat.model.dir" .)) }}
{{- if or .Values.storage.existingClaim (lookup "v1" "PersistentVolumeClaim" .Release.Namespace (include "chat.claimName" .)) }}true{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the model lies that serves now; "" where nobody can tell. */}}
{{- define "chat.prefetch.served" -}}
{{- get (include "chat.deployed.settings" . | fromYaml) "INTERNLM_MODEL_DIR" }}
{{- end }}

{{/* Those of the new pods; and that a hub cannot be reached is told, after both tries, within helm's own patience: five minutes as it comes. */}}
{{- define "chat.prefetch.settings" -}}
{{- $own := dict "INTERNLM_DOWNLOAD_KEEP" (include "chat.prefetch.served" .) "INTERNLM_DOWNLOAD_BUDGET" (toString (min 120 (int .Values.startupBudget))) }}
{{- toYaml (merge $own (include "chat.releaseSettings" . | fromYaml) (include "chat.settings" . | fromYaml)) }}
{{- end }}

{{- define "chat.prefetch.pod" -}}
containers:
  - {{- include "chat.downloadContainer" (list . (include "chat.prefetch.settings" .) list) | nindent 4 }}
volumes: {{- include "chat.volumes" . | nindent 2 }}
{{- include "chat.hook.placement" (list . (include "chat.prefetch.beside" . | fromYaml)) | nindent 0 }}
{{- end }}

{{/*
Where the server's pods are, if only one node may have the volume. The Job's own labels are among those looked for: where no such pod is, the
scheduler then lets it go anywhere.
*/}}
{{- define "chat.prefetch.beside" -}}
{{- if eq .Values.storage.accessMode "ReadWriteOnce" -}}
requiredDuringSchedulingIgnoredDuringExecution:
  - topologyKey: kubernetes.io/hostname
    labelSelector: {{- include "chat.prefetch.andServer" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* A selector of the server's pods and the Job's. */}}
{{- define "chat.prefetch.andServer" -}}
matchLabels:
  app.kubernetes.io/instance: {{ .Release.Name | quote }}
matchExpressions:
  - {key: app.kubernetes.io/name, operator: In, values: [{{ include "chat.name" . | quote }}, {{ include "chat.hook.name" (list . "prefetch") | quote }}]}
  - {key: app.kubernetes.io/component, operator: In, values: [server, prefetch]}
{{- end }}
