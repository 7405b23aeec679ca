{{/* The Job that brings another model before an upgrade to it: when there is one, what it is told, where it runs. */}}

{{/*
"true" where an upgrade changes the model's directory on a claim that is there. Whoever renders without a cluster (`helm template`, Argo CD)
cannot know that, and gets no Job. An existing claim is taken to exist: looking at it would take a right that helm needs for nothing else.
*/}}
{{- define "chat.prefetches" -}}
{{- $shared := and (not .Values.storage.perReplica) (has .Values.storage.accessMode (list "ReadWriteOnce" "ReadWriteMany")) }}
{{- if and .Release.IsUpgrade .Values.rollout.prefetch (include "chat.model.fromHub" .) $shared }}
{{- $directory := include "chat.prefetch.deployed" . }}
{{- if and $directory (ne $directory (include "chat.model.dir" .)) }}
{{- if or .Values.storage.existingClaim (lookup "v1" "PersistentVolumeClaim" .Release.Namespace (include "chat.claimName" .)) }}true{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the model lies that serves now; "" where nobody can tell. */}}
{{- define "chat.prefetch.deployed" -}}
{{- $deployed := lookup "v1" "ConfigMap" .Release.Namespace (include "chat.fullname" .) }}
{{- get (get ($deployed | default dict) "data" | default dict) "INTERNLM_MODEL_DIR" }}
{{- end }}

{{/* Those of the new pods; and that a hub cannot be reached is told, after both tries, within helm's own patience: five minutes as it comes. */}}
{{- define "chat.prefetch.settings" -}}
{{- $own := dict "INTERNLM_DOWNLOAD_KEEP" (include "chat.prefetch.deployed" .) "INTERNLM_DOWNLOAD_BUDGET" (toString (min 120 (int .Values.startupBudget))) }}
{{- toYaml (merge $own (include "chat.allSettings" . | fromYaml)) }}
{{- end }}

{{/* Another name than the server's: what is said of its pods, that two must not share a node, say, is not said of this one. */}}
{{- define "chat.prefetch.name" -}}
{{- printf "%s-prefetch" (include "chat.name" . | trunc 54 | trimSuffix "-") }}
{{- end }}

{{- define "chat.prefetch.labels" -}}
{{- $own := dict "app.kubernetes.io/name" (include "chat.prefetch.name" .) "app.kubernetes.io/component" "prefetch" }}
{{- toYaml (merge $own (include "chat.labelsWith" (list . (.Values.pod.labels | default dict)) | fromYaml)) }}
{{- end }}

{{/* A selector of the server's pods and the Job's. */}}
{{- define "chat.prefetch.andServer" -}}
matchLabels:
  app.kubernetes.io/instance: {{ .Release.Name | quote }}
matchExpressions:
  - {key: app.kubernetes.io/name, operator: In, values: [{{ include "chat.name" . | quote }}, {{ include "chat.prefetch.name" . | quote }}]}
  - {key: app.kubernetes.io/component, operator: In, values: [server, prefetch]}
{{- end }}

{{/* The pods' account, unless this very upgrade makes it. */}}
{{- define "chat.prefetch.account" -}}
{{- $account := include "chat.serviceAccountName" . }}
{{- if or (not .Values.serviceAccount.create) (lookup "v1" "ServiceAccount" .Release.Namespace $account) }}{{ $account }}{{ end }}
{{- end }}

{{/*
Where the server's pods are, if only one node may have the volume. The Job's own labels are among those looked for: where no such pod is, the
scheduler then lets it go anywhere.
*/}}
{{- define "chat.prefetch.placement" -}}
{{- $gpu := ternary .Values.gpu dict (eq .Values.mode "gpu") }}
{{- $affinity := pick (.Values.pod.affinity | default dict) "nodeAffinity" }}
{{- if eq .Values.storage.accessMode "ReadWriteOnce" }}
{{- $beside := dict "labelSelector" (include "chat.prefetch.andServer" . | fromYaml) "topologyKey" "kubernetes.io/hostname" }}
{{- $_ := set $affinity "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $beside)) }}
{{- end }}
{{- $pod := set (omit .Values.pod "affinity") "affinity" $affinity }}
{{- include "chat.placement" (list (dict "Values" (set (omit .Values "pod") "pod" $pod)) (omit $gpu "runtimeClassName")) }}
{{- end }}
