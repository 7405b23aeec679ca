{{/* Jobs before an upgrade, each called by what it does: `prefetch`, `preflight`. */}}

{{/* `(dict "root" . "hook" name "weight" order "pod" yaml)`: containers, volumes and placement are the Job's own. */}}
{{- define "chat.hook.job" -}}
{{- $hook := .hook }}
{{- $annotations := dict "helm.sh/hook" "pre-upgrade" "helm.sh/hook-weight" .weight "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded" "helm.sh/hook-output-log-policy" "hook-failed" }}
{{- $pod := .pod }}
{{- with .root -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ printf "%s-%s" (include "chat.fullname" .) $hook }}
  {{- include "chat.metadata" (list . dict $annotations) | nindent 2 }}
spec:
  # For a pod that is evicted.
  backoffLimit: 1
  activeDeadlineSeconds: {{ .Values.startupBudget }}
  # A failed one stays for its log, and not for ever.
  ttlSecondsAfterFinished: 86400
  template:
    metadata:
      {{- /* A mesh's sidecar would keep the pod from ending. */}}
      annotations: {{- toYaml (merge (dict "linkerd.io/inject" "disabled") (.Values.pod.annotations | default dict)) | nindent 8 }}
      labels: {{- include "chat.hook.labels" (list . $hook) | nindent 8 }}
    spec:
      restartPolicy: Never
      {{- with include "chat.hook.account" . }}
      serviceAccountName: {{ . | quote }}
      {{- end }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext: {{- toYaml .Values.pod.securityContext | nindent 8 }}
      {{- $pod | nindent 6 }}
{{- end }}
{{- end }}

{{/* `(list . hook)`. Another name than the server's: what is said of its pods, that two must not share a node, say, is not said of this one. */}}
{{- define "chat.hook.name" -}}
{{- printf "%s-%s" (include "chat.name" (index . 0) | trunc 53 | trimSuffix "-") (index . 1) }}
{{- end }}

{{/* `(list . hook)` */}}
{{- define "chat.hook.labels" -}}
{{- $root := index . 0 }}
{{- $own := dict "app.kubernetes.io/name" (include "chat.hook.name" .) "app.kubernetes.io/component" (index . 1) "sidecar.istio.io/inject" "false" }}
{{- toYaml (merge $own (include "chat.labelsWith" (list $root ($root.Values.pod.labels | default dict)) | fromYaml)) }}
{{- end }}

{{/* The pods' account, unless this very upgrade makes it. */}}
{{- define "chat.hook.account" -}}
{{- $account := include "chat.serviceAccountName" . }}
{{- if or (not .Values.serviceAccount.create) (lookup "v1" "ServiceAccount" .Release.Namespace $account) }}{{ $account }}{{ end }}
{{- end }}

{{/*
`(list . podAffinity)`: among the server's nodes, without what keeps servers apart and without a GPU. Its priority is nobody's: no pod has to give way.
*/}}
{{- define "chat.hook.placement" -}}
{{- $podAffinity := index . 1 }}
{{- with index . 0 }}
{{- $gpu := include "chat.gpuPlacement" . | fromYaml }}
{{- $affinity := pick (.Values.pod.affinity | default dict) "nodeAffinity" }}
{{- with $podAffinity }}
{{- $_ := set $affinity "podAffinity" . }}
{{- end }}
{{- $pod := set (omit .Values.pod "affinity" "priorityClassName") "affinity" $affinity }}
{{- include "chat.placement" (list (dict "Values" (set (omit .Values "pod") "pod" $pod)) (omit $gpu "runtimeClassName")) }}
{{- end }}
{{- end }}
