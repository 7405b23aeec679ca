{{/* What the cluster has of this release before an upgrade: nothing, where nobody can look (`helm template`, Argo CD). */}}

{{- define "chat.deployed" -}}
{{- $kind := ternary "StatefulSet" "Deployment" .Values.storage.perReplica }}
{{- lookup "apps/v1" $kind .Release.Namespace (include "chat.fullname" .) | toYaml }}
{{- end }}

{{/* As many as there are, where an autoscaler decides: without the field an upgrade that brings one would have Kubernetes take its default, which is one pod. */}}
{{- define "chat.replicas" -}}
{{- if and (eq .Values.autoscaling.kind "none") (not (kindIs "invalid" .Values.replicas)) }}
{{- .Values.replicas }}
{{- else }}
{{- dig "spec" "replicas" "" (include "chat.deployed" . | fromYaml) }}
{{- end }}
{{- end }}

{{- define "chat.deployed.pod" -}}
{{- dig "spec" "template" "spec" dict (include "chat.deployed" . | fromYaml) | toYaml }}
{{- end }}

{{/* The server's settings, as `chat.settings` has them. */}}
{{- define "chat.deployed.settings" -}}
{{- $settings := dict }}
{{- range (include "chat.deployed.pod" . | fromYaml).containers }}
{{- range .env }}
{{- if hasPrefix "INTERNLM_" .name }}
{{- $_ := set $settings .name (.value | default "" | replace "$$" "$") }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $settings }}
{{- end }}

{{/* Every image of the pods. */}}
{{- define "chat.deployed.images" -}}
{{- $pod := include "chat.deployed.pod" . | fromYaml }}
{{- $images := list }}
{{- range concat ($pod.initContainers | default list) ($pod.containers | default list) }}
{{- $images = append $images .image }}
{{- end }}
{{- range $pod.volumes }}
{{- with .image }}
{{- $images = append $images .reference }}
{{- end }}
{{- end }}
{{- toYaml $images }}
{{- end }}
