{{/* Where the model comes from and where it lies. */}}

{{- define "chat.model.source" -}}
{{- .Values.model.source | default (ternary "modelscope" "builtin" (eq .Values.mode "gpu")) }}
{{- end }}

{{- define "chat.model.defaultRepository" -}}
{{- ternary "internlm/internlm3-8b-instruct" "Shanghai_AI_Laboratory/internlm3-8b-instruct" (eq (include "chat.model.source" .) "huggingface") }}
{{- end }}

{{- define "chat.model.repository" -}}
{{- .Values.model.repository | default (include "chat.model.defaultRepository" .) }}
{{- end }}

{{- define "chat.model.revision" -}}
{{- .Values.model.revision | default (ternary "main" "master" (eq (include "chat.model.source" .) "huggingface")) }}
{{- end }}

{{/* "true" where a hub is asked. */}}
{{- define "chat.model.fromHub" -}}
{{- if has (include "chat.model.source" .) (list "modelscope" "huggingface") }}true{{ end }}
{{- end }}

{{/* "true" where the model lies on a claim: the init container then fetches or verifies it. */}}
{{- define "chat.model.onClaim" -}}
{{- if has (include "chat.model.source" .) (list "modelscope" "huggingface" "volume") }}true{{ end }}
{{- end }}

{{- define "chat.model.mountPath" -}}/models{{- end }}

{{/* The directory, "" for the model that is in the image. What a hub has under another name, or revision, has one of its own: the old is there until the new is whole. */}}
{{- define "chat.model.dir" -}}
{{- $path := .Values.model.path }}
{{- if include "chat.model.onClaim" . }}
{{- $path = $path | default (include "chat.model.ownDir" .) }}
{{- end }}
{{- if ne (include "chat.model.source" .) "builtin" }}
{{- printf "%s/%s" (include "chat.model.mountPath" .) $path | trimSuffix "/" }}
{{- end }}
{{- end }}

{{/* `~` is in no name of a branch or tag, and so no two of them have one directory. */}}
{{- define "chat.model.ownDir" -}}
{{- ternary "huggingface--" "" (eq (include "chat.model.source" .) "huggingface") }}
{{- include "chat.model.repository" . | replace "/" "--" }}
{{- if and .Values.model.revision (include "chat.model.fromHub" .) }}@{{ .Values.model.revision | replace "/" "~" }}{{ end }}
{{- end }}

{{/* What clients call it, "" where the server knows best. */}}
{{- define "chat.model.name" -}}
{{- if .Values.model.name }}
{{- .Values.model.name }}
{{- else if ne (include "chat.model.source" .) "builtin" }}
{{- .Values.model.path | default (include "chat.model.repository" .) | base }}
{{- end }}
{{- end }}

{{/* What people call it. */}}
{{- define "chat.model.title" -}}
{{- if eq (include "chat.model.source" .) "builtin" }}A small chat model
{{- else if include "chat.model.fromHub" . }}{{ include "chat.model.repository" . }}
{{- else }}{{ include "chat.model.name" . }}
{{- end }}
{{- end }}

{{/* Bytes the model takes, "" if unknown. */}}
{{- define "chat.model.size" -}}
{{- if .Values.model.size }}
{{- .Values.model.size }}
{{- else if eq (include "chat.model.repository" .) (include "chat.model.defaultRepository" .) }}17.7G{{ end }}
{{- end }}

{{- define "chat.claimName" -}}
{{- .Values.storage.existingClaim | default (printf "%s-model" (include "chat.fullname" .)) }}
{{- end }}

{{/* "true" where what is on the volume is this release's alone, and no pod of it can be using anything but what the newest does. */}}
{{- define "chat.mayMakeRoom" -}}
{{- and (not .Values.storage.existingClaim) (or .Values.storage.perReplica (eq (include "chat.recreates" .) "true")) }}
{{- end }}

{{/* A Kubernetes quantity, of bytes or CPUs, as a number that compares. */}}
{{- define "chat.amount" -}}
{{- $amount := toString . }}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 }}
{{- $unit := regexFind "[A-Za-z]*$" $amount }}
{{- mulf (trimSuffix $unit $amount | float64) (get $units $unit | float64) | printf "%.3f" }}
{{- end }}
