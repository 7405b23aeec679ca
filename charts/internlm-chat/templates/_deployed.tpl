{{/* What the cluster has of this release before an upgrade: nothing, where nobody can look (`helm template`, Argo CD). */}}

{{- define "chat.deployed" -}}
{{- $kind := ternary "StatefulSet" "Deployment" .Values.storage.perReplica }}
{{- lookup "apps/v1" $kind .Release.Namespace (include "chat.fullname" .) | toYaml }}
{{- end }}

{{/*
Empty where an autoscaler decides. But once the field was stated it stays, as the autoscaler has it: helm would take it away, and Kubernetes go back to
its default, which is one pod. Where it never was, a long upgrade cannot undo what the autoscaler did meanwhile.
*/}}
{{- define "chat.replicas" -}}
{{- $deployed := include "chat.deployed" . | fromYaml }}
{{- if and (eq .Values.autoscaling.kind "none") (not (kindIs "invalid" .Values.replicas)) }}
{{- .Values.replicas }}
{{- else if hasKey (dig "metadata" "annotations" dict $deployed) "internlm-chat/replicas" }}
{{- dig "spec" "replicas" "" $deployed }}
{{- end }}
{{- end }}

{{/* The annotation of a workload whose field is stated. */}}
{{- define "chat.replicasMark" -}}
{{- if include "chat.replicas" . }}
internlm-chat/replicas: stated
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
